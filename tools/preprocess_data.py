r"""Tokenize raw text into Megatron's .bin/.idx: any corpus in, one dataset per key out, with a manifest.

Examples:
    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \
        --tokenizer-type Llama2Tokenizer --tokenizer-model tokenizer.model --append-eod --workers 8

    # everything below a folder, in shards on many machines; each command may be killed and typed again
    python tools/preprocess_data.py --input corpus/ --output-prefix data/corpus --shard 3/16 --resume ...
    python tools/merge_datasets.py --shards data/corpus

    # chat rows: only the answers are learned
    python tools/preprocess_data.py --input chats.jsonl --row-format conversations --chat-template chatml ...
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import DataError, run_command

if TYPE_CHECKING:
    from megatron_ext.data.preprocessing.preprocess import PreprocessRequest
    from megatron_ext.data.rows.settings import RowSettings

_ONE_FILE = "one run reads any number of files with any number of workers; --shard I/N divides a run over machines"
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
# Kept here as plain text, so that --help needs no import; tests compare them with the modules they come from.
_TYPES = (
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "HuggingFaceTokenizer",
    "TikTokenizer",
    "NullTokenizer",
)
_FORMATS = ("jsonl", "json", "parquet", "text", "text-file")
_ROW_FORMATS = (
    "text",
    "content",
    "data",
    "completion",
    "conversations",
    "instruction",
    "input-output",
    "moss",
    "preference",
    "yuan",
)


def make_parser() -> CommandParser:
    """The flags, with Megatron-LM's names where it has them."""
    parser = CommandParser(__doc__, _REFUSED)
    _add_input(parser.add_argument_group("input"))
    _add_rows(parser.add_argument_group("rows: what one record is, and what of it is learned"))
    _add_fim(parser.add_argument_group("fill-in-the-middle"))
    _add_tokenizer(parser.add_argument_group("tokenizer"))
    _add_output(parser.add_argument_group("output"))
    _add_runtime(parser.add_argument_group("runtime"))
    return parser


def _add_input(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="files, folders, glob patterns, or - for standard input; .gz and .zst are unpacked",
    )
    group.add_argument(
        "--input-format",
        choices=("auto", *_FORMATS),
        default="auto",
        help="auto goes by the suffix: .jsonl .json (an array) .parquet .txt (a document a line); text-file is a "
        "document a file",
    )
    group.add_argument(
        "--on-error",
        choices=("quarantine", "stop"),
        default="quarantine",
        help="bad records: set aside in PREFIX.quarantine.jsonl, or refuse the run",
    )


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--row-format", choices=_ROW_FORMATS, default="text", help="what the records hold")
    group.add_argument(
        "--explain-rows", action=_ExplainRows, help="print row formats, templates and label rules, and exit"
    )
    group.add_argument("--json-keys", nargs="+", default=[], help="text columns, a dataset each (default: text)")
    group.add_argument(
        "--field", nargs="+", default=[], metavar="NAME=COLUMN", help="columns that have other names in this corpus"
    )
    group.add_argument(
        "--chat-template", default=None, help="how a conversation is laid out: chatml, belle, baichuan2 ..."
    )
    group.add_argument(
        "--label-rule", default=None, help="which tokens are learned: m0 ... m8 (default: the template's)"
    )
    group.add_argument(
        "--special-token",
        nargs="+",
        default=[],
        metavar="NAME=PIECE_OR_ID",
        help="special tokens of a template that have other names in this vocabulary",
    )
    group.add_argument(
        "--role", nargs="+", default=[], metavar="NAME=ROLE", help="roles with other names in this corpus"
    )
    group.add_argument(
        "--separator", default=None, help="text between context and completion, or instruction and input"
    )
    group.add_argument("--system-text", default=None, help="system message of conversations that have none")
    group.add_argument("--max-length", type=int, default=None, help="most tokens of a document")
    group.add_argument(
        "--over-long",
        choices=("cut", "drop"),
        default="cut",
        help="what becomes of longer ones; dropped are quarantined",
    )


class _ExplainRows(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from megatron_ext.data.rows.describe import describe_forms

        print(describe_forms())
        parser.exit()


def _add_fim(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--fim-rate", type=float, default=0.0, help="share of the documents that are rearranged")
    group.add_argument("--fim-spm-rate", type=float, default=0.5, help="share of those whose suffix comes first")
    group.add_argument("--fim-prefix-token", default="<fim_prefix>", help="special token before the prefix")
    group.add_argument("--fim-middle-token", default="<fim_middle>", help="special token before the middle")
    group.add_argument("--fim-suffix-token", default="<fim_suffix>", help="special token before the suffix")
    group.add_argument(
        "--seed", type=int, default=1234, help="decides which documents are rearranged, and where they are cut"
    )


def _add_tokenizer(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tokenizer-type", choices=_TYPES, required=True, help="kind of tokenizer")
    group.add_argument("--tokenizer-model", default=None, help="its file, or folder for HuggingFaceTokenizer")
    group.add_argument("--vocab-size", type=int, default=None, help="number of plain ids of NullTokenizer")
    group.add_argument(
        "--tokenizer-engine",
        choices=("auto", "native", "reference"),
        default="auto",
        help="auto takes the fast engine where it gives the reference library's ids, checked on the input itself",
    )
    group.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document id")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output-prefix", required=True, help="path without suffix; files are PREFIX_KEY_document.*")
    group.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    group.add_argument("--resume", action="store_true", help="go on with an unfinished run of the same command, if any")
    group.add_argument(
        "--shard", default=None, metavar="I/N", help="only part I (from 0) of N; merge_datasets.py joins them"
    )


def _add_runtime(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workers", type=int, default=1, help="processes that tokenize; the result never depends on it")
    group.add_argument("--log-interval", type=int, default=1000, help="documents between two progress lines, at least")
    group.add_argument(
        "--commit-seconds", type=float, default=30.0, help="most work that a killed run loses, in seconds"
    )
    group.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="ray runs --num-shards on a Ray cluster"
    )
    group.add_argument("--num-shards", type=int, default=None, help="shards of --executor ray")
    group.add_argument("--ray-address", default=None, help="address of the cluster (default: a local one is started)")


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    request = request_of(arguments)
    if arguments.executor == "ray":
        from megatron_ext.data.preprocessing.ray_executor import preprocess_on_ray

        preprocess_on_ray(request, arguments.num_shards, arguments.ray_address)
        return
    if arguments.num_shards is not None or arguments.ray_address is not None:
        raise DataError("--num-shards and --ray-address belong to --executor ray", fix="Add it, or leave them out")
    from megatron_ext.data.preprocessing.preprocess import preprocess

    preprocess(request)


def request_of(arguments: argparse.Namespace) -> PreprocessRequest:
    """The flags as a request.

    Raises:
        DataError: a flag cannot be read.
    """
    from megatron_ext.data.preprocessing.preprocess import PreprocessRequest
    from megatron_ext.data.sources.shards import parse_shard

    return PreprocessRequest(
        inputs=tuple(arguments.input),
        output_prefix=arguments.output_prefix,
        tokenizer_type=arguments.tokenizer_type,
        tokenizer_model=arguments.tokenizer_model,
        vocab_size=arguments.vocab_size,
        tokenizer_engine=arguments.tokenizer_engine,
        rows=_row_settings(arguments),
        input_format=arguments.input_format,
        shard=parse_shard(arguments.shard) if arguments.shard is not None else None,
        workers=arguments.workers,
        log_interval=arguments.log_interval,
        stop_on_error=arguments.on_error == "stop",
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        commit_seconds=arguments.commit_seconds,
    )


def _row_settings(arguments: argparse.Namespace) -> RowSettings:
    from megatron_ext.data.rows.settings import FimSettings, RowSettings

    return RowSettings(
        row_format=arguments.row_format,
        json_keys=tuple(arguments.json_keys),
        fields=_pairs("--field", arguments.field),
        chat_template=arguments.chat_template,
        label_rule=arguments.label_rule,
        special_tokens=_pairs("--special-token", arguments.special_token),
        roles=_pairs("--role", arguments.role),
        separator=arguments.separator,
        system_text=arguments.system_text,
        append_eod=arguments.append_eod,
        max_length=arguments.max_length,
        over_long=arguments.over_long,
        fim=FimSettings(
            rate=arguments.fim_rate,
            spm_rate=arguments.fim_spm_rate,
            seed=arguments.seed,
            prefix_token=arguments.fim_prefix_token,
            middle_token=arguments.fim_middle_token,
            suffix_token=arguments.fim_suffix_token,
        ),
    )


def _pairs(flag: str, words: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise DataError(f"{flag} {word!r} cannot be read", "It is NAME=VALUE", "Write it without spaces around =")
        pairs.append((name, value))
    return tuple(pairs)


if __name__ == "__main__":
    run_command(main)
