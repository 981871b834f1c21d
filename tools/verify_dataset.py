"""Verify finished datasets: sizes, checksums, index, counts, ids, document ends, loss mask; status 1 when one fails.

Example:
    python tools/verify_dataset.py data/corpus_text_document
"""

from __future__ import annotations

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import run_command


def make_parser() -> CommandParser:
    """The flags."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument(
        "datasets", nargs="+", metavar="PREFIX", help="paths without suffix, names of their files, or glob patterns"
    )
    parser.add_argument("--fast", action="store_true", help="structure only: nothing that needs every byte")
    parser.add_argument(
        "--no-manifest", action="store_true", help="accept datasets without manifest, as Megatron-LM makes them"
    )
    tokenizer = parser.add_argument_group("tokenizer", "given any of these, it must be the one that made the data")
    tokenizer.add_argument("--tokenizer-type", default=None, help="kind of tokenizer; else the manifest's")
    tokenizer.add_argument("--tokenizer-model", default=None, help="its file or folder")
    tokenizer.add_argument("--vocab-size", type=int, default=None, help="number of plain ids of NullTokenizer")
    return parser


def main(argv: list[str]) -> int:
    """Print one line per check; 1 when one of them fails.

    Raises:
        MegatronExtError: a pattern matches no dataset.
    """
    arguments = make_parser().parse_args(argv)
    from tqdm import tqdm

    from megatron_ext.data.store.dataset_names import dataset_prefixes
    from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags
    from megatron_ext.data.store.verify import VerifyOptions, bytes_to_read, verify_dataset

    flags = TokenizerFlags(arguments.tokenizer_type, arguments.tokenizer_model, arguments.vocab_size)
    options = VerifyOptions(arguments.fast, not arguments.no_manifest, flags)
    prefixes = dataset_prefixes(arguments.datasets)
    total = 0 if arguments.fast else sum(map(bytes_to_read, prefixes))
    failed: dict[str, int] = {}
    # `disable=None`: no bar where stderr is not a terminal; `write` keeps it apart from the lines.
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", dynamic_ncols=True, disable=None) as bar:
        for prefix in prefixes:
            bar.write(prefix)
            for finding in verify_dataset(prefix, options, bar.update):
                word = "ok" if finding.ok else "damaged"
                bar.write(f"  {word:8} {finding.check:20} {finding.error or finding.detail}")
                failed[prefix] = failed.get(prefix, 0) + (not finding.ok)
    damaged = [prefix for prefix, number in failed.items() if number]
    print(f"{len(prefixes) - len(damaged)} of {len(prefixes)} datasets are sound", end="")
    print(f"; damaged: {', '.join(damaged)}" if damaged else "")
    return 1 if damaged else 0


if __name__ == "__main__":
    run_command(main)
