"""Tokenize raw text into Megatron's .bin/.idx: JSON lines in, one dataset per key out, with a manifest.

Example:
    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \
        --tokenizer-type Llama2Tokenizer --tokenizer-model tokenizer.model --append-eod --workers 8
"""

from __future__ import annotations

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import run_command

_ONE_FILE = "one run reads any number of files with any number of workers; no partitions are written to disk"
_REFUSED = {
    "--partitions": _ONE_FILE,
    "--keep-sequential-samples": "the order of the input is always kept",
    "--split-sentences": "sentence splitting serves BERT and T5, which are not trained here",
    "--keep-newlines": "it belongs to sentence splitting; newlines are always kept",
    "--lang": "it belongs to sentence splitting",
    "--vocab-file": "the vocabulary is in the file of --tokenizer-model",
    "--merge-file": "the merges are in the file of --tokenizer-model (a tokenizer.json)",
    "--find-optimal-num-workers": "try a few values of --workers on a part of the corpus",
    "--workers-to-check": "it belongs to --find-optimal-num-workers",
    "--max-documents": "it belongs to --find-optimal-num-workers",
    "--make-vocab-size-divisible-by": "padding the vocabulary is a matter of the model, not of the data",
    "--tensor-model-parallel-size": "padding the vocabulary is a matter of the model, not of the data",
}
# Kept here as plain text, so that --help needs no import; tests compare it with megatron_ext.tokenizer.
_TYPES = (
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "HuggingFaceTokenizer",
    "NullTokenizer",
)


def make_parser() -> CommandParser:
    """The flags, with Megatron-LM's names."""
    parser = CommandParser(__doc__.splitlines()[0], _REFUSED)
    data = parser.add_argument_group("input")
    data.add_argument(
        "--input", nargs="+", required=True, help="JSON-lines files, .gz or .zst allowed, or glob patterns"
    )
    data.add_argument("--json-keys", nargs="+", default=["text"], help="keys whose texts become documents")
    data.add_argument(
        "--on-error",
        choices=("quarantine", "stop"),
        default="quarantine",
        help="bad records: set aside in PREFIX.quarantine.jsonl, or refuse the run",
    )
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", choices=_TYPES, required=True, help="kind of tokenizer")
    tokenizer.add_argument("--tokenizer-model", default=None, help="its file, or folder for HuggingFaceTokenizer")
    tokenizer.add_argument("--vocab-size", type=int, default=None, help="number of plain ids of NullTokenizer")
    tokenizer.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document id")
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="path without suffix; files are PREFIX_KEY_document.*")
    output.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument(
        "--workers", type=int, default=1, help="processes that tokenize; the result never depends on it"
    )
    runtime.add_argument("--log-interval", type=int, default=1000, help="documents between two progress lines")
    return parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    from megatron_ext.data.preprocess import PreprocessRequest, preprocess

    preprocess(
        PreprocessRequest(
            inputs=tuple(arguments.input),
            output_prefix=arguments.output_prefix,
            tokenizer_type=arguments.tokenizer_type,
            tokenizer_model=arguments.tokenizer_model,
            vocab_size=arguments.vocab_size,
            json_keys=tuple(arguments.json_keys),
            append_eod=arguments.append_eod,
            workers=arguments.workers,
            log_interval=arguments.log_interval,
            stop_on_error=arguments.on_error == "stop",
            overwrite=arguments.overwrite,
        )
    )


if __name__ == "__main__":
    run_command(main)
