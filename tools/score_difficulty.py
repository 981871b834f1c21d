r"""Score how hard each document of a dataset is: one score file per metric beside the dataset, higher is harder.

Metrics: length, rarity, unigram, bigram (from token ids), compression, diversity, readability (from the text),
field:NAME (a number in the rows that made the dataset), model (the loss under an exported checkpoint).

Examples:
    python tools/score_difficulty.py --input data/corpus_text_document --metric length rarity readability --workers 8

    # what the input says itself, and what a small model of this project finds hard
    python tools/score_difficulty.py --input data/corpus_text_document --metric field:quality model \
        --model exported/small --plot scores.png
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.data.command_flags import CommandParser
from megatron_ext.errors import DataError, run_command

if TYPE_CHECKING:
    from megatron_ext.data.curriculum.score_run import ScorePass
    from megatron_ext.data.curriculum.score_summary import ScoreSummary
    from megatron_ext.data.store.indexed import IndexedDataset

_FIELD, _MODEL = "field:", "model"
_SHOWN_CHARACTERS, _SHOWN_TOKENS = 200, 400
_BINS = 60


def make_parser() -> CommandParser:
    """The flags."""
    parser = CommandParser(__doc__)
    parser.add_argument("--input", required=True, metavar="PREFIX", help="dataset: path without suffix, or its file")
    parser.add_argument("--metric", required=True, nargs="+", metavar="NAME", help="one or more metrics, see above")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE.png", help="draw a histogram of each metric")
    parser.add_argument("--examples", type=int, default=3, help="easiest, median and hardest documents shown of each")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--workers", type=int, default=1, help="processes; the scores are the same for any number")
    runtime.add_argument("--resume", action="store_true", help="go on with a killed run; finished scores are kept")
    runtime.add_argument("--overwrite", action="store_true", help="replace scores and unfinished work")
    rows = parser.add_argument_group("field:NAME", "the rows that made the dataset, in the same order")
    rows.add_argument("--input-rows", nargs="+", default=None, metavar="FILE", help="else those the manifest names")
    rows.add_argument("--input-format", default="auto", help="as tools/preprocess_data.py was given it")
    parser.add_argument("--model", type=Path, default=None, metavar="FOLDER", help="exported checkpoint for `model`")
    tokenizer = parser.add_argument_group("tokenizer", "else the one that the manifest names")
    tokenizer.add_argument("--tokenizer-type", default=None, help="kind of tokenizer")
    tokenizer.add_argument("--tokenizer-model", default=None, help="its file or folder")
    tokenizer.add_argument("--vocab-size", type=int, default=None, help="number of plain ids of NullTokenizer")
    return parser


def main(argv: list[str]) -> None:
    """Write the scores, then say what they look like.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    from megatron_ext.data.curriculum.score_file import ScoreFile
    from megatron_ext.data.curriculum.score_run import RunOptions, run_pass
    from megatron_ext.data.curriculum.score_summary import percentile_rows, summarize
    from megatron_ext.data.store.dataset_names import dataset_prefixes
    from megatron_ext.data.store.indexed import IndexedDataset

    check_flags(arguments)
    prefixes = dataset_prefixes([arguments.input])
    if len(prefixes) > 1:
        raise DataError(f"{arguments.input} matches {len(prefixes)} datasets", fix="Name one of them")
    dataset = IndexedDataset(prefixes[0])
    dataset.check_structure()  # every length is read anyway
    if not dataset.num_documents:
        raise DataError(f"{dataset.prefix} has no documents to score")
    passes = make_passes(dataset, arguments)
    options = RunOptions(arguments.resume, arguments.overwrite)
    paths: dict[str, Path] = {}
    for one in passes:
        paths.update(zip(one.made_by, run_pass(dataset, one, options), strict=True))
    summaries = {name: summarize(ScoreFile(dataset.prefix, name, dataset).values, arguments.examples) for name in paths}
    for line in percentile_rows(summaries):
        print(line)
    show_examples(dataset, summaries, arguments)
    for path in paths.values():
        print(f"{path}: scores of {dataset.num_documents:,} documents")
    if arguments.plot is not None:
        draw(summaries, arguments.plot, Path(dataset.prefix).name)
        print(f"{arguments.plot}: histograms of {', '.join(summaries)}")


def check_flags(arguments: Any) -> None:
    """Find mistakes in the flags before anything is opened.

    Raises:
        DataError: an unknown metric, one named twice, or flags that do not go together.
    """
    from megatron_ext.data.curriculum.input_fields import field_score_name
    from megatron_ext.data.curriculum.score_file import score_path
    from megatron_ext.data.curriculum.score_passes import find_metric

    for place, name in enumerate(arguments.metric):
        if name in arguments.metric[:place]:
            raise DataError(f"--metric {name} is given twice", fix="Name it once")
        if name.startswith(_FIELD):
            score_path(arguments.input, field_score_name(name.removeprefix(_FIELD)))
        elif name != _MODEL:
            find_metric(name, [f"{_FIELD}NAME", _MODEL])
    if (_MODEL in arguments.metric) != (arguments.model is not None):
        raise DataError("--metric model and --model FOLDER belong together", fix="Give both or none")
    if arguments.workers < 1 or arguments.examples < 1:
        raise DataError("--workers and --examples are at least 1")
    if arguments.resume and arguments.overwrite:
        raise DataError("--resume keeps what --overwrite replaces", fix="Give one of them")


def make_passes(dataset: IndexedDataset, arguments: Any) -> list[ScorePass]:
    """The passes over the dataset that give all metrics: what documents hold, what their rows say, what a model says.

    Raises:
        MegatronExtError: a tokenizer, an input or the model cannot be used.
    """
    from megatron_ext.data.curriculum.score_passes import DocumentPass, needs_text
    from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer

    fields = [name.removeprefix(_FIELD) for name in arguments.metric if name.startswith(_FIELD)]
    own = [name for name in arguments.metric if not name.startswith(_FIELD) and name != _MODEL]
    flags = TokenizerFlags(arguments.tokenizer_type, arguments.tokenizer_model, arguments.vocab_size)
    passes: list[ScorePass] = []
    if own:
        tokenizer = open_tokenizer(dataset.manifest, flags) if any(map(needs_text, own)) else None
        passes.append(DocumentPass(dataset, own, tokenizer, arguments.workers))
    if fields:
        passes.append(_field_pass(dataset, fields, flags, arguments))
    if arguments.model is not None:
        from megatron_ext.data.curriculum.reference_loss import ModelPass

        passes.append(ModelPass(dataset, arguments.model))
    return passes


def _field_pass(dataset: IndexedDataset, fields: list[str], flags: Any, arguments: Any) -> ScorePass:
    from megatron_ext.data.curriculum.input_fields import FieldPass
    from megatron_ext.data.sources.inputs import expand_inputs
    from megatron_ext.data.store.dataset_tokenizer import open_tokenizer

    manifest = dataset.manifest
    if manifest is None:
        raise DataError(
            f"{dataset.prefix} has no manifest, which would say how rows became documents",
            fix="Make the dataset again with tools/preprocess_data.py",
        )
    files = expand_inputs(arguments.input_rows or [entry.path for entry in manifest.inputs], arguments.input_format)
    return FieldPass(dataset, fields, files, open_tokenizer(manifest, flags), arguments.workers)


def show_examples(dataset: IndexedDataset, summaries: dict[str, ScoreSummary], arguments: Any) -> None:
    """Print the beginnings of the easiest, the median and the hardest documents of each metric."""
    from megatron_ext.data.curriculum.score_file import ScoreFile
    from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer
    from megatron_ext.data.store.document_text import BRACKETS, DocumentText
    from megatron_ext.errors import TokenizerError

    flags = TokenizerFlags(arguments.tokenizer_type, arguments.tokenizer_model, arguments.vocab_size)
    try:
        tokenizer = open_tokenizer(dataset.manifest, flags)
    except TokenizerError as error:
        if flags.given:
            raise
        print(f"token ids only: {error}")
        tokenizer = None
    view = DocumentText(tokenizer, False, BRACKETS, 0, tokenizer.eod_id if tokenizer else None)
    for name, summary in summaries.items():
        values = ScoreFile(dataset.prefix, name, dataset).values
        for kind in ("easiest", "median", "hardest"):
            print(f"--- {name}: {kind}")
            for document in getattr(summary, kind):
                begin, end = dataset.document_offsets(document, document + 1)
                text = view.render(dataset.tokens[begin : min(end, begin + _SHOWN_TOKENS)], None)
                print(f"{values[document]:12,.4f}  document {document}: {' '.join(text.split())[:_SHOWN_CHARACTERS]}")


def draw(summaries: dict[str, ScoreSummary], output: Path, title: str) -> None:
    """Write a histogram per metric, with the median and the outer percentiles marked.

    Raises:
        DataError: the picture cannot be written.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    size = (10, 1 + 3 * len(summaries))
    figure, axes = pyplot.subplots(len(summaries), 1, figsize=size, squeeze=False, layout="constrained")
    documents = next(iter(summaries.values())).documents
    figure.suptitle(f"{title}\n{documents:,} documents, harder to the right")
    for axis, (name, summary) in zip(axes[:, 0], summaries.items(), strict=True):
        sample = summary.sample.astype(np.float64)
        # lengths and the like spread over orders of magnitude
        is_log = sample[0] > 0 and summary.largest > 50 * summary.percentile(1)
        edges = np.geomspace(sample[0], max(sample[-1], sample[0] * 1.01), _BINS) if is_log else _BINS
        heights, edges = np.histogram(sample, edges)
        axis.stairs(heights * (documents / len(sample)), edges, fill=True, alpha=0.6)
        axis.set_xscale("log" if is_log else "linear")
        for percent, style in ((10, ":"), (50, "-"), (90, ":")):
            value = summary.percentile(percent)
            axis.axvline(value, color="black", linestyle=style, linewidth=1, label=f"p{percent} {value:,.4g}")
        axis.set_xlabel(name)
        axis.set_ylabel("documents per bin")
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(output, format="png", dpi=100)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error})", fix="Give another --plot") from None
    finally:
        pyplot.close(figure)


if __name__ == "__main__":
    run_command(main)
