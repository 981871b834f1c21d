r"""Pack finished datasets into blocks: a document of the output is a training sample of at most --seq-length tokens.

Example:
    python tools/pack_dataset.py --method first-fit --input data/chat_text_document data/code_text_document \
        --weights 2.0 1.0 --output-prefix data/packed --seq-length 4096 --pad-id 3

Train on it with --dataset-packing documents. Methods:
    stream     documents end to end, cut every --seq-length tokens
    overlap    full blocks, each repeating the end of the one before without learning it (Yuren)
    first-fit  whole rows, weighted and shuffled, first fit, padded on the left (TeleChat)
    buckets    whole documents, a dataset OUT_SIZE for each block size (XuanYuan2)
"""

from __future__ import annotations

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import run_command

# Kept here as plain text, so that --help needs no import; tests compare it with megatron_ext.data.packing.
_METHODS = ("overlap", "first-fit", "buckets", "stream")
_LONG_DOCUMENTS = ("cut", "refuse", "drop")


def make_parser() -> CommandParser:
    """The flags of the command; one that is not given is None, so that none is accepted and ignored."""
    parser = CommandParser(__doc__)
    parser.add_argument("--method", choices=_METHODS, required=True, help="the packing rule")
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX", help="datasets, without suffix")
    parser.add_argument("--output-prefix", required=True, help="path without suffix; buckets write PREFIX_SIZE")
    parser.add_argument("--seq-length", type=int, help="most tokens of a block (not for buckets)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    overlap = parser.add_argument_group("overlap")
    overlap.add_argument("--bos-id", type=int, help="the id that begins each document; required")
    overlap.add_argument("--reset-every", type=int, help="begin anew after so many documents, as published with 1000")
    rows = parser.add_argument_group("first-fit")
    rows.add_argument("--pad-id", type=int, help="the id that fills a block on its left, never learned; required")
    rows.add_argument("--weights", type=float, nargs="+", help="copies of each row, one number an input; default 1")
    rows.add_argument("--weights-file", help="JSON object of input prefix -> weight, instead of --weights")
    rows.add_argument("--pack-shards", type=int, help="parts of the shuffled rows that are packed apart; default 1")
    rows.add_argument("--num-samples", type=int, help="blocks wanted, in as many epochs as needed; default one epoch")
    rows.add_argument("--seed", type=int, help="decides weights, shuffle and order; default 1234")
    buckets = parser.add_argument_group("buckets")
    buckets.add_argument("--bucket-sizes", type=int, nargs="+", help="rising block sizes; required")
    buckets.add_argument(
        "--long-documents", choices=_LONG_DOCUMENTS, help="longer ones than the largest size; default refuse"
    )
    stream = parser.add_argument_group("stream")
    stream.add_argument(
        "--drop-last", action="store_true", default=None, help="leave out the last block when it is short"
    )
    return parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = vars(make_parser().parse_args(argv))
    from megatron_ext.data.packing.pack import pack
    from megatron_ext.data.packing.settings import PackSettings

    for name in ("weights", "bucket_sizes"):
        if arguments[name] is not None:
            arguments[name] = tuple(arguments[name])
    pack(PackSettings(inputs=tuple(arguments.pop("input")), **arguments))


if __name__ == "__main__":
    run_command(main)
