"""Draw a run: loss, gradient norm, learning rate and speed against iterations and tokens, into one PNG.

    python tools/plot_run.py RUN_DIR [--output loss.png]

RUN_DIR is the --save folder of the run; metrics.jsonl and, where there, validation.jsonl are read from it. Of a blend
sources.jsonl gives two more rows: the loss of each dataset, and its share of the samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.errors import MegatronExtError, run_command
from megatron_ext.training.metrics import METRICS_FILE, VALIDATION_FILE, read_records
from megatron_ext.training.source_losses import SOURCES_FILE

ROWS = (
    ("lm_loss", "loss (mean per token)"),
    ("grad_norm", "gradient norm"),
    ("learning_rate", "learning rate"),
    ("tokens_per_s", "tokens/s"),
)
SOURCE_ROWS = (("loss", "loss by dataset"), ("share", "share of samples"))
MAX_LEGEND = 12
COLUMNS = (("iteration", "iteration"), ("consumed_tokens", "tokens trained on"))


def main(argv: list[str]) -> None:
    """Read the run, write the picture, say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --save folder of the run")
    parser.add_argument("--output", type=Path, help="PNG to write (default: RUN_DIR/loss.png)")
    arguments = parser.parse_args(argv)
    records = read_run(arguments.run_dir)
    output = arguments.output or arguments.run_dir / "loss.png"
    evaluations, sources = (points_of(arguments.run_dir / name, records) for name in (VALIDATION_FILE, SOURCES_FILE))
    draw(records, evaluations, sources, output, title=str(arguments.run_dir))
    print(f"{output}: {len(records)} iterations up to {records[-1]['iteration']}, loss {records[-1]['lm_loss']}")


def read_run(run_dir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl.

    Raises:
        MegatronExtError: there is no such folder or file, or no iteration in it.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise MegatronExtError(
            f"{path} does not exist", "a run writes it into its --save folder", "give the folder that --save named"
        )
    records = read_records(path)
    if not records:
        raise MegatronExtError(f"{path} holds no iteration yet", fix="wait for the first iteration of the run")
    absent = [name for name, _ in (*ROWS, *COLUMNS) if name not in records[0]]
    if absent:
        raise MegatronExtError(f"{path} has no {', '.join(absent)}", "it is not the metrics file of a training run")
    return records


def points_of(path: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of another file of the run, each with the tokens that its iteration had consumed."""
    tokens = {record["iteration"]: record["consumed_tokens"] for record in records}
    return [{**p, "consumed_tokens": tokens[p["iteration"]]} for p in read_records(path) if p["iteration"] in tokens]


def draw(
    records: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    sources: list[dict[str, Any]],
    output: Path,
    title: str,
) -> None:
    """Write the picture; a value that was not finite leaves a gap.

    Raises:
        MegatronExtError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    rows = (*ROWS, *SOURCE_ROWS) if sources else ROWS
    size = (12, 3.25 * len(rows))
    figure, axes = pyplot.subplots(len(rows), len(COLUMNS), figsize=size, sharex="col", layout="constrained")
    figure.suptitle(title)
    for row, (value, value_label) in enumerate(rows):
        for column, (position, position_label) in enumerate(COLUMNS):
            axis = axes[row][column]
            if row >= len(ROWS):
                _draw_sources(axis, sources, position, value)
            else:
                axis.plot(*_series(records, position, value), label="train", linewidth=1)
            if value == "lm_loss" and evaluations:
                axis.plot(*_series(evaluations, position, value), "o-", label="validation", markersize=4)
                axis.legend()
            axis.set_ylabel(value_label)
            axis.grid(alpha=0.3)
            if row == len(rows) - 1:
                axis.set_xlabel(position_label)
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    try:
        figure.savefig(output, format="png", dpi=100)
    except OSError as error:
        raise MegatronExtError(f"{output} cannot be written: {error}", fix="give another --output") from error
    finally:
        pyplot.close(figure)


def _draw_sources(axis: Any, points: list[dict[str, Any]], position: str, value: str) -> None:
    """One line per dataset; their names where there is room for them."""
    names = [source["name"] for source in points[-1]["sources"]]
    for place, name in enumerate(names):
        line = [{position: point[position], value: point["sources"][place][value]} for point in points]
        axis.plot(*_series(line, position, value), label=name, linewidth=1)
    if len(names) <= MAX_LEGEND:
        axis.legend(fontsize="small")


def _series(records: list[dict[str, Any]], position: str, value: str) -> tuple[list[float], list[float]]:
    values = [record[value] for record in records]
    return [record[position] for record in records], [float("nan") if v is None else v for v in values]


if __name__ == "__main__":
    run_command(main)
