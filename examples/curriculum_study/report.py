"""Write report.md and loss.png of a curriculum study from the files of its runs: final losses, spread, tokens needed.

The validation losses come from validation.jsonl of every finished run; nothing is computed again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

BASELINE = "shuffled"
ORDERS = (BASELINE, "sorted", "paced", "interleaved")
COLOURS = {BASELINE: "black", "sorted": "tab:red", "paced": "tab:blue", "interleaved": "tab:green"}
COLUMNS = (
    *("schedule", "order", "seeds", "final loss", "spread"),
    *("difference", "difference half-way", "tokens needed", "shuffled is there at"),
)
LEGEND = """
The spread is the standard deviation over seeds. Differences are to the shuffled run of the same schedule and seed: the
mean, and the lowest to the highest of the seeds; below 0 the order is better. Tokens needed: the share of the epoch
after which a run is first at the final loss of the shuffled run; beside it, after which share the shuffled run is first
at the final loss of this order.
"""
PUBLISHED = """## What others measured

| source | claim | what stands here |
|---|---|---|
| arXiv 2506.11300 (more than 200 models, up to 100 B tokens) | 18 to 45 % fewer steps to the baseline's loss; as a warm-up before shuffled data up to +3.5 % | the column of tokens needed |
| arXiv 2212.03597 (DeepSpeed Data Efficiency, GPT-3 1.3B) | a curriculum alone saves 1.5x of the data | the same column |
| arXiv 2601.21698 (Pythia 14M to 1B, 300 B tokens) | gains up to 160M parameters, smaller with scale | one size, far below theirs |
| arXiv 2511.18903 (1.5B, 30 B tokens) | with the best data last, a decaying learning rate cancels the gain: that data sees a tiny rate | the two schedules |

## What cannot be concluded

- The model is tiny, the corpus is small and one, the epoch is one. Nothing here says what happens at 1B parameters.
- One metric ranks the samples; a sample is a window over several documents, which evens difficulty out.
- The peak learning rate was not tuned for each order, and differences within the spread of the seeds are not findings.
- Easy-first here is easy by the metric. Whether the end of the order, or its beginning, makes a difference is not
  separated.
"""  # noqa: E501


@dataclass(frozen=True)
class Curve:
    """Validation loss of one run: `tokens[i]` trained on, `losses[i]` in nats per token, in the order of training."""

    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, tokens: float) -> float:
        """The loss after so many tokens, linear between two evaluations."""
        place = min(max(bisect_left(self.tokens, tokens), 1), len(self.tokens) - 1)
        (x0, x1), (y0, y1) = self.tokens[place - 1 : place + 1], self.losses[place - 1 : place + 1]
        return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)

    def first_at(self, loss: float) -> float | None:
        """After how many tokens the loss is first as low, linear between two evaluations; None: never."""
        for place, reached in enumerate(self.losses):
            if reached <= loss:
                if place == 0:
                    return self.tokens[0]
                (x0, x1), (y0, y1) = self.tokens[place - 1 : place + 1], self.losses[place - 1 : place + 1]
                return x0 + (x1 - x0) * (y0 - loss) / (y0 - y1)
        return None


Curves = dict[tuple[str, str], dict[int, Curve]]  # (schedule, order) -> seed -> curve


def main(argv: list[str]) -> int:
    """Write both files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="examples/curriculum_study/report.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", required=True, type=Path, metavar="DIR", help="the --out folder of run.py")
    study = parser.parse_args(argv).study
    curves, unfinished = read_curves(study / "runs")
    if not curves:
        print(f"error: {study} holds no finished run. Run examples/curriculum_study/run.py first.", file=sys.stderr)
        return 1
    (study / "report.md").write_text("\n".join(report(study, curves, unfinished)), encoding="utf-8")
    draw(curves, study / "loss.png")
    print(f"{study / 'report.md'} and loss.png: {sum(map(len, curves.values()))} runs")
    return 0


def read_curves(runs: Path) -> tuple[Curves, list[str]]:
    """The finished runs, those with as many tokens as the longest; and the names of the others."""
    found = {}
    for path in sorted(runs.glob("seed-*/*/*/validation.jsonl")):
        last = json.loads((path.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        seq_length = last["consumed_tokens"] // last["consumed_samples"]
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        tokens = tuple(record["consumed_samples"] * seq_length for record in records)
        found[path.parent.relative_to(runs).parts] = Curve(tokens, tuple(record["lm_loss"] for record in records))
    whole = max((curve.tokens[-1] for curve in found.values()), default=0)
    curves: Curves = {}
    for (seed, schedule, order), curve in found.items():
        if curve.tokens[-1] == whole:
            curves.setdefault((schedule, order), {})[int(seed.removeprefix("seed-"))] = curve
    ordered = dict(sorted(curves.items(), key=lambda item: (item[0][0], ORDERS.index(item[0][1]))))
    return ordered, ["/".join(name) for name, curve in found.items() if curve.tokens[-1] < whole]


def report(study: Path, curves: Curves, unfinished: list[str]) -> Iterator[str]:
    """The lines of report.md."""
    yield "# Curriculum study\n"
    yield from facts(study, curves, unfinished)
    yield "\n## Validation loss after the same samples"
    yield LEGEND
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    yield from (row(curves, *key) for key in curves)
    yield ""
    yield from verdicts(curves)
    yield from effect_of_decay(curves)
    yield "\n![validation loss against tokens](loss.png)\n"
    yield PUBLISHED


def facts(study: Path, curves: Curves, unfinished: list[str]) -> Iterator[str]:
    """What was trained on, in the words of the tools."""
    yield "```text"
    for log in ("corpus", "dataset"):
        path = study / "logs" / f"{log}.log"
        yield from (
            path.read_text(encoding="utf-8").replace(f"{study.absolute()}/", "").splitlines() if path.is_file() else ()
        )
    yield "```\n"
    whole = max(curve.tokens[-1] for runs in curves.values() for curve in runs.values())
    yield f"Every run saw {whole:,} tokens of training data, one epoch. The orders differ in nothing else."
    said = [p.read_text(encoding="utf-8") for p in sorted((study / "logs").glob("sorted-seed-*.log"))[:1]]
    yield from (f"{line.partition(': ')[2]}." for text in said for line in text.splitlines() if " of " in line)
    scores = study / "logs" / "scores.log"
    frequency = re.search(r"^rarity +([\d.]+)", scores.read_text(encoding="utf-8"), re.M) if scores.is_file() else None
    if frequency:
        yield f"A model that knows only how often each token occurs loses about {float(frequency[1]):.2f} nats per"
        yield "token (the mean rarity of the documents)."
    if unfinished:
        yield f"Not finished and left out: {', '.join(unfinished)}."


def pairs(curves: Curves, schedule: str, order: str) -> list[tuple[Curve, Curve]]:
    """The runs of an order, each beside the shuffled run of its schedule and seed."""
    baseline = curves.get((schedule, BASELINE), {})
    return [(curve, baseline[seed]) for seed, curve in curves[schedule, order].items() if seed in baseline]


def row(curves: Curves, schedule: str, order: str) -> str:
    """One line of the table."""
    runs = curves[schedule, order]
    finals = [curve.losses[-1] for curve in runs.values()]
    spread = f"{stdev(finals):.4f}" if len(finals) > 1 else "-"
    cells = [schedule, order, str(len(finals)), f"{mean(finals):.4f}", spread]
    beside = [] if order == BASELINE else pairs(curves, schedule, order)
    if not beside:
        return "| " + " | ".join((*cells, "-", "-", *(("100 %", "100 %") if order == BASELINE else "--"))) + " |"
    whole = beside[0][0].tokens[-1]
    cells.append(signed([own.losses[-1] - other.losses[-1] for own, other in beside]))
    cells.append(signed([own.at(whole / 2) - other.at(whole / 2) for own, other in beside]))
    cells.append(share([own.first_at(other.losses[-1]) for own, other in beside], whole))
    cells.append(share([other.first_at(own.losses[-1]) for own, other in beside], whole))
    return "| " + " | ".join(cells) + " |"


def share(tokens: Sequence[float | None], whole: int) -> str:
    """The mean in percent of `whole` tokens of those that got there, and how many did not."""
    reached = [count for count in tokens if count is not None]
    missed = len(tokens) - len(reached)
    text = f"{mean(reached) / whole * 100:.0f} %" if reached else ""
    return " ".join(filter(None, (text, f"not reached in {missed} of {len(tokens)}" if missed else "")))


def signed(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{mean(values):+.4f} ({min(values):+.4f} to {max(values):+.4f})"


def verdicts(curves: Curves) -> Iterator[str]:
    """One sentence for each order and schedule.

    A difference counts where all seeds agree on its sign and its mean is above twice the spread of the shuffled runs.
    """
    for schedule, order in curves:
        beside = [] if order == BASELINE else pairs(curves, schedule, order)
        if not beside:
            continue
        differences = [own.losses[-1] - other.losses[-1] for own, other in beside]
        noise = stdev(other.losses[-1] for _, other in beside) if len(beside) > 1 else 0.0
        if len(differences) < 2:
            what = "one seed says nothing about noise"
        elif min(differences) <= 0 <= max(differences) or abs(mean(differences)) <= 2 * noise:
            what = "not told apart from shuffled, the seeds differ as much"
        else:
            what = f"{'lower' if differences[0] < 0 else 'higher'} than shuffled, beyond the spread of the seeds"
        yield f"- {order}, {schedule}: {what} ({mean(differences):+.4f} nats, seeds: {len(differences)})."


def effect_of_decay(curves: Curves) -> Iterator[str]:
    """What the decaying learning rate changes in the final loss of each order, where both schedules were run."""
    constant, cosine = ({o: runs for (s, o), runs in curves.items() if s == name} for name in ("constant", "cosine"))
    if not constant or not cosine:
        return
    yield "\nFinal loss with cosine decay less that with a constant rate, same order and seed (below 0: decay helps):\n"
    yield "| order | difference |"
    yield "|---|---|"
    for order in (order for order in constant if order in cosine):
        seeds = sorted(set(constant[order]) & set(cosine[order]))
        changes = [cosine[order][seed].losses[-1] - constant[order][seed].losses[-1] for seed in seeds]
        yield from (f"| {order} | {signed(changes)} |" for _ in changes[:1])


def draw(curves: Curves, output: Path) -> None:
    """Losses against tokens above, differences to the shuffled run of the same seed below; bands are all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    schedules = sorted({schedule for schedule, _ in curves})
    figure, axes = pyplot.subplots(
        2,
        len(schedules),
        figsize=(5 * len(schedules), 7),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for (schedule, order), runs in curves.items():
        upper, lower = axes[0][schedules.index(schedule)], axes[1][schedules.index(schedule)]
        upper.set_title(f"learning rate: {schedule}")
        band(upper, [(c.tokens, c.losses) for c in runs.values()], order)
        differences = [
            (own.tokens, [a - b for a, b in zip(own.losses, other.losses, strict=True)])
            for own, other in pairs(curves, schedule, order)
        ]
        band(lower, differences, order)
        lower.set_xlabel("tokens trained on")
        lower.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("validation loss, nats per token")
    axes[1][0].set_ylabel("difference to shuffled")
    axes[0][0].legend()
    figure.savefig(output, format="png", dpi=80)
    pyplot.close(figure)


def band(axis: Any, runs: Sequence[tuple[Sequence[int], Sequence[float]]], order: str) -> None:
    """The mean of the runs as a line, lowest to highest as a band."""
    if not runs:
        return
    tokens = runs[0][0]
    columns = list(zip(*(values for _, values in runs), strict=True))
    axis.plot(tokens, [mean(column) for column in columns], color=COLOURS[order], label=order)
    lowest, highest = [min(column) for column in columns], [max(column) for column in columns]
    axis.fill_between(tokens, lowest, highest, color=COLOURS[order], alpha=0.2, linewidth=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
