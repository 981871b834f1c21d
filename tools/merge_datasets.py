"""Join datasets into one. All shards of a run give the bytes of one run: tokens, index, mask, quarantine, manifest.

Examples:
    python tools/merge_datasets.py --shards data/corpus
    python tools/merge_datasets.py --input data/wiki_text_document 'data/web-*_text_document.idx' \
        --output-prefix data/all_text_document
"""

from __future__ import annotations

from typing import Any

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import ConfigError, run_command


def make_parser() -> CommandParser:
    """The flags."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument(
        "--shards",
        metavar="OUTPUT_PREFIX",
        default=None,
        help="the --output-prefix of a run that was made with --shard I/N: join its shards, of every key",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PREFIX",
        default=None,
        help="datasets: paths without suffix, names of their files, or glob patterns; joined in this order",
    )
    parser.add_argument("--output-prefix", default=None, help="the joined dataset of --input, a path without suffix")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser


def requests_of(arguments: Any) -> list[Any]:
    """The merges that the flags ask for: one, or with --shards one per key.

    Raises:
        MegatronExtError: the flags do not say what to join, or nothing is there.
    """
    from megatron_ext.data.store.dataset_names import dataset_prefixes, shards_by_key
    from megatron_ext.data.store.merge import MergeRequest

    if (arguments.shards is None) == (arguments.input is None):
        raise ConfigError("give either --shards or --input", fix="See --help")
    if arguments.input is not None and arguments.output_prefix is None:
        raise ConfigError("--input needs --output-prefix", "It names the joined dataset, a path without suffix")
    if arguments.input is not None:
        return [MergeRequest(tuple(dataset_prefixes(arguments.input)), arguments.output_prefix, arguments.overwrite)]
    base = arguments.output_prefix or arguments.shards
    found = shards_by_key(arguments.shards)
    return [
        MergeRequest(tuple(prefixes), f"{base}_{key}_document", arguments.overwrite) for key, prefixes in found.items()
    ]


def main(argv: list[str]) -> None:
    """Join, and say what was written.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    from tqdm import tqdm

    from megatron_ext.data.store.merge import bytes_to_copy, merge_datasets

    requests = requests_of(arguments)
    total = sum(bytes_to_copy(request.prefixes) for request in requests)
    # `disable=None`: no bar where stderr is not a terminal; `write` keeps it apart from the lines.
    with tqdm(total=total, unit="B", unit_scale=True, desc="merging", dynamic_ncols=True, disable=None) as bar:
        for request in requests:
            result = merge_datasets(request, bar.update)
            bar.write(
                f"{result.output_prefix}: {result.num_parts} datasets, {result.num_documents} documents, "
                f"{result.num_tokens} tokens"
            )


if __name__ == "__main__":
    run_command(main)
