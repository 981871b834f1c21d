r"""Make an order file from the scores of a dataset: training then sees its samples in the order of a curriculum.

Examples:
    python tools/build_curriculum.py --data-path data/corpus_text_document --split 969,30,1 --seq-length 2048 \
        --score compression --method paced --pacing root --output easy_first.order --plot easy_first.png
    python tools/build_curriculum.py --data-path data/corpus_text_document --seq-length 2048 \
        --score compression --method staged --stages 0-30:2e9 20-100:8e9 --output staged.order
    python tools/build_curriculum.py --data-path data/general_text_document data/finance_text_document \
        --seq-length 2048 --score rarity --method staged --output mixed.order \
        --stages "1*9@0-30,2*1:2e9" "general_text_document*4,finance_text_document*1@20-100:8e9"

With several datasets every method orders the samples of all of them together. Stages may name datasets instead, by the
last part of their prefix or their number: NAME*WEIGHT or NAME*WEIGHT@FROM-TO, percentiles of that dataset.

The order file fits a run with the same --data-path, --split, --seq-length, --dataset-packing and --pad-last-sample:
    torchrun pretrain_gpt.py --dataset-order easy_first.order ...
The validation and the test part keep their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.config.sections.data import DataConfig
from megatron_ext.config.sections.train import TrainConfig
from megatron_ext.data.command_flags import CommandParser
from megatron_ext.data.curriculum.pacing import PACINGS, Pacing
from megatron_ext.data.curriculum.settings import METHODS, CurriculumSettings
from megatron_ext.data.curriculum.stages import parse_stage
from megatron_ext.errors import ConfigError, DataError, run_command

if TYPE_CHECKING:
    from megatron_ext.data.store.indexed import IndexedDataset
    from megatron_ext.data.views import OrderedView


def make_parser() -> CommandParser:
    """The flags."""
    parser = CommandParser(__doc__)
    data = parser.add_argument_group("data", "spelled and meant as in the run that the order is for")
    for flag, extent in (("--data-path", "cut by --split"), ("--train-data-path", "all of it to train on")):
        data.add_argument(
            flag, nargs="+", metavar="PREFIX", help=f"the dataset, {extent}; several are ordered together"
        )
    data.add_argument("--split", default=DataConfig.split, help="shares of training, validation and test")
    data.add_argument("--seq-length", type=int, required=True, help="tokens in a sample")
    data.add_argument("--dataset-packing", choices=("stream", "documents"), default="stream", help="what a sample is")
    data.add_argument("--pad-last-sample", action="store_true", help="the tail of the data is a sample too")
    parser.add_argument("--score", required=True, metavar="NAME", help="the scores PREFIX.NAME.scores")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="order file to write")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE.png", help="draw difficulty against position")
    _add_method_flags(parser)
    return parser


def _add_method_flags(parser: CommandParser) -> None:
    method = parser.add_argument_group("method")
    method.add_argument("--method", choices=METHODS, required=True, help="how samples are ordered")
    method.add_argument("--seed", type=int, default=TrainConfig.seed, help="decides every shuffle")
    method.add_argument("--reverse", action="store_true", help="the hardest count as the easiest")
    method.add_argument(
        "--jitter-buckets", type=int, default=0, help="first shuffle inside so many buckets of like difficulty"
    )
    method.add_argument("--buckets", type=int, default=10, help="interleaved: buckets dealt in turn")
    method.add_argument(
        "--warmup-share", type=float, default=0.1, help="warmup: share from easy to hard; then shuffled"
    )
    paced = parser.add_argument_group("method paced", "which share of the easiest may be drawn at which progress")
    paced.add_argument("--pacing", choices=PACINGS, default="linear", help="how the share rises")
    paced.add_argument("--start-share", type=float, default=0.1, help="the share at the beginning")
    paced.add_argument("--full-at", type=float, default=1.0, help="progress, 0 to 1, at which everything is open")
    paced.add_argument("--root", type=float, default=2.0, help="of pacing root")
    paced.add_argument("--num-steps", type=int, default=10, help="of pacing steps")
    paced.add_argument("--points", nargs="+", default=[], metavar="PROGRESS:SHARE", help="of pacing list")
    staged = parser.add_argument_group("method staged")
    staged.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="FROM-TO:TOKENS",
        help="percentiles of difficulty and tokens of each stage, FROM-TO+FROM-TO joins ranges; or datasets, as in "
        "NAME*WEIGHT@FROM-TO,NAME*WEIGHT:TOKENS; no sample comes twice",
    )


def main(argv: list[str]) -> None:
    """Write the order file, and the picture if asked.

    Raises:
        MegatronExtError: what the user has to mend.
    """
    arguments = make_parser().parse_args(argv)
    settings = curriculum_settings(arguments)
    from megatron_ext.data.curriculum.build import build_curriculum

    parts = training_parts(arguments)
    trace = build_curriculum(
        [(store, view.target) for store, view in parts], arguments.score, settings, arguments.output
    )
    print(
        f"{arguments.output}: {trace.num_places:,} of {sum(len(view) for _, view in parts):,} samples of "
        f"{arguments.seq_length} tokens, "
        f"{settings.method} by {arguments.score}{' from hard to easy' if settings.reverse else ''}"
    )
    if arguments.plot is not None:
        from megatron_ext.data.curriculum.picture import draw

        what = trace.source_names[0] if len(parts) == 1 else f"{len(parts)} datasets"
        draw(
            trace,
            arguments.plot,
            f"{arguments.output.name}: {what} {settings.method}, {trace.num_places:,} samples",
            arguments.score,
        )
        print(
            f"{arguments.plot}: difficulty{', and share of each dataset,' if len(parts) > 1 else ''} against position"
        )


def training_parts(arguments: Any) -> list[tuple[IndexedDataset, OrderedView]]:
    """Each dataset and the view of its training part, as a run with these flags makes it.

    Raises:
        DataError: no dataset is named, weights are given, a dataset is missing or damaged, or its training part has
            no sample.
    """
    from megatron_ext.data.blend import parse_blend

    if (arguments.data_path is None) == (arguments.train_data_path is None):
        raise DataError("the data is not named", fix="Give either --data-path or --train-data-path")
    if arguments.seq_length < 1:
        raise ConfigError(f"--seq-length {arguments.seq_length} cannot be used", "A sample has at least 1 token")
    flag = "--train-data-path" if arguments.data_path is None else "--data-path"
    prefixes, weights = parse_blend(arguments.data_path or arguments.train_data_path, flag)
    if len(prefixes) > 1 and weights is not None:
        raise DataError(
            f"{flag} gives weights of datasets",
            "An order says which sample comes when, and with it the share of every dataset",
            f"Give {flag} {' '.join(prefixes)} without weights; --method staged takes some in --stages",
        )
    return [_training_part(prefix, arguments) for prefix in prefixes]


def _training_part(prefix: str, arguments: Any) -> tuple[IndexedDataset, OrderedView]:
    from megatron_ext.data.document_samples import DocumentView
    from megatron_ext.data.split import Span, span_of, split_bounds
    from megatron_ext.data.store.indexed import IndexedDataset
    from megatron_ext.data.views import WindowView

    store = IndexedDataset(prefix)
    store.check_structure()  # every length is read anyway
    span = Span(0, store.num_sequences)
    if arguments.data_path is not None:
        bounds = split_bounds(arguments.split)[0]
        span = Span(0, 0) if bounds is None else span_of(bounds, store.num_sequences)
    if not span.size:
        raise DataError(
            f'--split "{arguments.split}" leaves nothing to train on',
            f"{store.prefix} has {store.num_sequences} sequences",
        )
    pad_id = 0  # which id fills samples is not part of an order
    if arguments.dataset_packing == "documents":
        return store, DocumentView(store, span, arguments.seq_length, pad_id)
    return store, WindowView(store, span, arguments.seq_length, pad_id=pad_id if arguments.pad_last_sample else None)


def curriculum_settings(arguments: Any) -> CurriculumSettings:
    """The settings that the flags give.

    Raises:
        ConfigError: a value cannot be used.
    """
    if arguments.jitter_buckets < 0:
        raise ConfigError(f"--jitter-buckets {arguments.jitter_buckets} cannot be used", "It is at least 0")
    return CurriculumSettings(
        method=arguments.method,
        seed=arguments.seed,
        reverse=arguments.reverse,
        jitter_buckets=arguments.jitter_buckets,
        buckets=arguments.buckets,
        warmup_share=arguments.warmup_share,
        pacing=Pacing(
            kind=arguments.pacing,
            start_share=arguments.start_share,
            full_at=arguments.full_at,
            root=arguments.root,
            num_steps=arguments.num_steps,
            points=tuple(map(_point, arguments.points)),
        ),
        stages=tuple(map(parse_stage, arguments.stages)),
    )


def _point(text: str) -> tuple[float, float]:
    try:
        progress, share = text.split(":")
        return float(progress), float(share)
    except ValueError:
        raise ConfigError(f"--points {text} cannot be read", "A point is PROGRESS:SHARE, as in 0.25:0.5") from None


if __name__ == "__main__":
    run_command(main)
