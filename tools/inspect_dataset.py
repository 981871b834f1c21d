"""Look into a dataset: counts, decoded documents with what is learned of them, and the document lengths as a picture.

Examples:
    python tools/inspect_dataset.py data/corpus_text_document --documents 0 5 -1
    python tools/inspect_dataset.py data/corpus_text_document --plot lengths.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import DataError, run_command

if TYPE_CHECKING:
    from megatron_ext.data.store.dataset_summary import LengthTable
    from megatron_ext.data.store.indexed import IndexedDataset

_FIRST_DOCUMENTS = 3
_BINS = 60


def make_parser() -> CommandParser:
    """The flags."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument("dataset", metavar="PREFIX", help="path without suffix, or one of its files")
    shown = parser.add_argument_group("documents")
    shown.add_argument(
        "--documents",
        nargs="*",
        type=int,
        default=None,
        help=f"numbers of the documents to show, -1 is the last; none: counts only; else the first {_FIRST_DOCUMENTS}",
    )
    shown.add_argument("--ids", action="store_true", help="show token ids too")
    shown.add_argument("--max-tokens", type=int, default=500, help="tokens shown of a document; 0: all")
    tokenizer = parser.add_argument_group("tokenizer", "else the one that the manifest names")
    tokenizer.add_argument("--tokenizer-type", default=None, help="kind of tokenizer")
    tokenizer.add_argument("--tokenizer-model", default=None, help="its file or folder")
    tokenizer.add_argument("--vocab-size", type=int, default=None, help="number of plain ids of NullTokenizer")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE.png", help="draw the document lengths")
    return parser


def main(argv: list[str]) -> None:
    """Print the counts and the documents, and draw the picture if asked.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    from megatron_ext.data.store.dataset_names import dataset_prefixes
    from megatron_ext.data.store.dataset_summary import document_lengths, summary_rows
    from megatron_ext.data.store.indexed import IndexedDataset

    prefixes = dataset_prefixes([arguments.dataset])
    if len(prefixes) > 1:
        raise DataError(f"{arguments.dataset} matches {len(prefixes)} datasets", fix="Name one of them")
    dataset = IndexedDataset(prefixes[0])
    table = document_lengths(dataset)
    print(dataset.prefix)
    for name, value in summary_rows(dataset, table):
        print(f"  {name:16} {value}")
    show_documents(dataset, arguments)
    if arguments.plot is not None:
        draw(table, arguments.plot, title=Path(dataset.prefix).name)
        print(f"{arguments.plot}: lengths of {table.num_documents:,} documents")


def show_documents(dataset: IndexedDataset, arguments: Any) -> None:
    """Print the documents that the flags name.

    Raises:
        MegatronExtError: there is no such document, or the tokenizer is not the one that made the data.
    """
    from megatron_ext.data.store.document_text import DocumentText, marks_for

    numbers = arguments.documents
    if numbers is None:
        numbers = range(min(_FIRST_DOCUMENTS, dataset.num_documents))
    absent = [number for number in numbers if not -dataset.num_documents <= number < dataset.num_documents]
    if absent:
        raise DataError(f"there is no document {absent[0]}", f"The dataset has {dataset.num_documents} documents")
    if not numbers:
        return
    tokenizer = _tokenizer(dataset, arguments)
    eod_id = dataset.manifest.tokenizer.eod_id if dataset.manifest else tokenizer and tokenizer.eod_id
    view = DocumentText(tokenizer, arguments.ids, marks_for(sys.stdout), arguments.max_tokens, eod_id)
    if dataset.loss_mask is not None:
        print(f"marks: {view.marks.legend}")
    for number in (number % dataset.num_documents for number in numbers):
        begin, end = dataset.document_offsets(number, number + 1)
        mask = None if dataset.loss_mask is None else dataset.loss_mask[begin:end]
        print(f"--- document {number}, {end - begin:,} tokens")
        print(view.render(dataset.tokens[begin:end], mask))


def _tokenizer(dataset: IndexedDataset, arguments: Any) -> Any:
    """The tokenizer to decode with; None, with a line that says why, where nothing says which one or its file is gone.

    A tokenizer named by a flag has to be the right one.
    """
    from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer
    from megatron_ext.errors import TokenizerError

    flags = TokenizerFlags(arguments.tokenizer_type, arguments.tokenizer_model, arguments.vocab_size)
    try:
        return open_tokenizer(dataset.manifest, flags)
    except TokenizerError as error:
        if flags.given:
            raise
        print(f"token ids only: {error}")
        return None


def draw(table: LengthTable, output: Path, title: str) -> None:
    """Write two histograms over document length: of the documents, and of the tokens in them.

    Raises:
        DataError: there is nothing to draw, or the picture cannot be written.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    if not table.num_tokens:
        raise DataError("there is no document with a token to draw")
    edges, is_log = bin_edges(table)
    figure, axes = pyplot.subplots(2, 1, figsize=(10, 8), sharex=True, layout="constrained")
    empty = int(table.documents[table.lengths == 0].sum())
    what = f"{table.num_documents:,} documents" + (f" ({empty:,} without tokens, not drawn)" if empty else "")
    figure.suptitle(f"{title}\n{what}, {table.num_tokens:,} tokens")
    weights = (("documents", table.documents), ("tokens", table.documents * table.lengths))
    for axis, (name, weight) in zip(axes, weights, strict=True):
        heights, _ = np.histogram(table.lengths, edges, weights=weight)
        axis.stairs(heights, edges, fill=True, alpha=0.6)
        axis.set_ylabel(f"{name} per bin")
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    for label, value, style in (
        ("median", table.quantile(0.5), "-"),
        ("mean", table.mean, "--"),
        ("p99", table.quantile(0.99), ":"),
    ):
        for axis in axes:
            axis.axvline(value, color="black", linestyle=style, linewidth=1, label=f"{label} {value:,.0f}")
    axes[0].legend()
    if is_log:
        axes[1].set_xscale("log")
        axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes[1].set_xlim(min(edges[0], table.mean - 10), max(edges[-1], table.mean + 10))
        axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[1].set_xlabel("document length in tokens")
    try:
        figure.savefig(output, format="png", dpi=100)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error})", fix="Give another --plot") from None
    finally:
        pyplot.close(figure)


def bin_edges(table: LengthTable) -> tuple[Any, bool]:
    """Edges of the histogram's bins over all lengths but 0, and whether they belong on a logarithmic axis.

    Every bin holds whole lengths, so that no bin is empty only because no whole number lies in it.
    """
    import numpy as np

    drawn = table.lengths[table.lengths > 0]
    smallest, largest = int(drawn[0]), int(drawn[-1])
    if largest > 20 * smallest:
        return np.unique(np.ceil(np.geomspace(smallest, largest + 1, _BINS))) - 0.5, True
    width = -(-(largest + 1 - smallest) // _BINS)
    return np.arange(smallest, largest + 1 + width, width) - 0.5, False


if __name__ == "__main__":
    run_command(main)
