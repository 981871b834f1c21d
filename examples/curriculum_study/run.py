"""Does a curriculum help? The same small model on the same samples in four orders, under two learning-rate schedules.

Every step is an ordinary command of this project and is printed before it runs. A step whose result is there is
skipped, a killed training run goes on from its newest checkpoint: typing the same command again continues the study.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent.relative_to(ROOT)
ORDERS = ("shuffled", "sorted", "paced", "interleaved")
SCHEDULES = ("constant", "cosine")
SPLIT = "96,4,0"
SEQ_LENGTH = 128  # as in study.yaml
BATCHES = (6, 7, 8, 9, 10)  # the largest of those that leave fewest samples of an epoch over is the batch
EVALUATIONS = 12

EPILOG = """examples:
  # classical Chinese poetry: unpack the npm package first, with `npm pack chinese-poetry` and tar
  python examples/curriculum_study/run.py --poetry package --out runs/curriculum-study --seeds 1 2 3

  # the demo corpus, one seed; and: does it run at all?
  python examples/curriculum_study/run.py --out runs/curriculum-demo
  python examples/curriculum_study/run.py --quick --out runs/curriculum-quick

results: OUT/report.md, OUT/loss.png, OUT/orders/*.png, OUT/scores.png, OUT/logs/*.log
"""


@dataclass(frozen=True)
class Size:
    """How much of everything; `characters` of each kind of poetry, `corpus_mb` of each language of the demo corpus."""

    characters: int
    corpus_mb: float
    vocab_size: int
    model_flags: str = ""


FULL = Size(characters=120_000, corpus_mb=1.4, vocab_size=5120)
QUICK = Size(
    characters=4_000,
    corpus_mb=0.15,
    vocab_size=1200,
    model_flags="--num-layers 1 --hidden-size 32 --ffn-hidden-size 64",
)


@dataclass(frozen=True)
class Study:
    """What is compared. The corpus, the size and the metric cannot change within one folder; more runs can join."""

    out: Path
    poetry: Path | None
    size: Size
    metric: str

    def settings(self) -> str:
        """What the results in the folder depend on, as JSON."""
        corpus = "demo" if self.poetry is None else "chinese-poetry"
        return json.dumps({"corpus": corpus, "metric": self.metric, **asdict(self.size)}, indent=2) + "\n"


@dataclass(frozen=True)
class Step:
    """One command: its line, whether its result is there, the log that keeps what it says."""

    line: str
    is_done: bool
    log: Path


@dataclass(frozen=True)
class Run:
    """One training run."""

    order: str
    schedule: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder below runs/."""
        return f"seed-{self.seed}/{self.schedule}/{self.order}"


def main(argv: list[str]) -> int:
    """Run all steps; returns the exit status of the first that fails, otherwise 0."""
    args = parse_args(argv)
    poetry = args.poetry.absolute() if args.poetry else None
    study = Study(args.out.absolute(), poetry, QUICK if args.quick else FULL, args.metric)
    refusal = prepare(study)
    if refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    os.chdir(ROOT)
    for step in data_steps(study):
        if status := carry_out(step):
            return status
    for step in (step for seed in args.seeds for step in order_steps(study, seed)):
        if status := carry_out(step):
            return status
    samples = samples_of_an_epoch(study)
    for run in (Run(o, c, s) for s in args.seeds for c in args.schedules for o in args.orders):
        if status := carry_out(training_step(study, run, samples)):
            return status
    return subprocess.run([sys.executable, HERE / "report.py", "--study", study.out], check=False).returncode


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line of the study."""
    parser = argparse.ArgumentParser(
        prog="examples/curriculum_study/run.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for all results")
    parser.add_argument(
        "--poetry", type=Path, metavar="DIR", help="the unpacked npm package chinese-poetry (default: the demo corpus)"
    )
    parser.add_argument("--metric", default="rarity", help="score of tools/score_difficulty.py (default: rarity)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of weights and shuffles (default: 1)")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS), help="orders (default: all)")
    parser.add_argument(
        "--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="learning rates (default: both)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model on English text")
    return parser.parse_args(argv)


def prepare(study: Study) -> str:
    """Make the folder; returns why it cannot be used, or an empty text."""
    noted = study.out / "study.json"
    if noted.is_file() and noted.read_text(encoding="utf-8") != study.settings():
        return f"{study.out} holds a study of another corpus, size or metric. Choose another folder with --out."
    if not noted.is_file() and study.out.exists() and any(study.out.iterdir()):
        return f"{study.out} is not empty and holds no study. Choose another folder with --out."
    for name in ("logs", "data", "orders", "runs"):
        (study.out / name).mkdir(parents=True, exist_ok=True)
    noted.write_text(study.settings(), encoding="utf-8")
    return ""


def python(script: str, **flags: object) -> str:
    """A command line: `script` and its flags, underscores for hyphens; a flag that is True stands alone."""
    words = [sys.executable, script]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(words)


def data_steps(study: Study) -> Iterator[Step]:
    """Corpus, tokenizer, dataset, scores."""
    out, size, logs = study.out, study.size, study.out / "logs"
    corpus = out / "corpus.jsonl"
    if study.poetry is not None:
        script = str(HERE / "poetry.py")
        line = python(script, package=study.poetry, output=corpus, max_characters=size.characters)
    else:
        line = python("tools/demo_corpus.py", out=out, max_mb=size.corpus_mb)
        line += " --no-chinese" if size is QUICK else ""
    yield Step(line, corpus.exists(), logs / "corpus.log")
    flags = {"input": corpus, "output_prefix": out / "tokenizer", "vocab_size": size.vocab_size}
    line = python("tools/train_tokenizer.py", **flags, character_coverage=0.98, overwrite=True)
    yield Step(line, (out / "tokenizer.model").exists(), logs / "tokenizer.log")
    line = python("tools/preprocess_data.py", input=corpus, output_prefix=out / "data/study", append_eod=True)
    is_done = dataset(out, ".manifest.json").exists()
    yield Step(f"{line} --overwrite {tokenizer(out)}", is_done, logs / "dataset.log")
    flags = {"metric": study.metric, "plot": out / "scores.png", "overwrite": True}
    line = python("tools/score_difficulty.py", input=dataset(out), **flags)
    yield Step(line, (out / "scores.png").exists(), logs / "scores.log")


def order_steps(study: Study, seed: int) -> Iterator[Step]:
    """The order files of one seed, each with its picture."""
    for order in ORDERS[1:]:
        file = order_file(study.out, order, seed)
        line = python(
            "tools/build_curriculum.py",
            data_path=dataset(study.out),
            split=SPLIT,
            seq_length=SEQ_LENGTH,
            score=study.metric,
            method=order,
            seed=seed,
            output=file,
            plot=file.with_suffix(".png"),
        )
        yield Step(line, file.with_suffix(".png").exists(), study.out / "logs" / f"{file.stem}.log")


def tokenizer(out: Path) -> str:
    """The flags that name the study's tokenizer."""
    return f"--tokenizer-type SentencePieceTokenizer --tokenizer-model {shlex.quote(str(out / 'tokenizer.model'))}"


def dataset(out: Path, suffix: str = "") -> Path:
    """The dataset's prefix, or a file of it."""
    return out / "data" / f"study_text_document{suffix}"


def order_file(out: Path, order: str, seed: int) -> Path:
    """The order file of one seed."""
    return out / "orders" / f"{order}-seed-{seed}.order"


def samples_of_an_epoch(study: Study) -> int:
    """Samples in the training part, as tools/build_curriculum.py counted them."""
    logs = sorted((study.out / "logs").glob("sorted-seed-*.log"))
    said = "".join(log.read_text(encoding="utf-8") for log in logs)  # one of them may be of a build that was killed
    counts = re.findall(r"([\d,]+) of [\d,]+ samples", said)
    return int(counts[-1].replace(",", ""))


def training_step(study: Study, run: Run, samples: int) -> Step:
    """One training run over one epoch of `samples`; typed again, it goes on from its newest checkpoint."""
    folder = study.out / "runs" / run.name
    batch = min(BATCHES, key=lambda size: (samples % size, -size))
    iterations = samples // batch
    line = python(
        "pretrain_gpt.py",
        config=HERE / "study.yaml",
        data_path=dataset(study.out),
        split=SPLIT,
        dataset_order="permuted" if run.order == "shuffled" else order_file(study.out, run.order, run.seed),
        seed=run.seed,
        micro_batch_size=batch,
        global_batch_size=batch,
        train_iters=iterations,
        lr_decay_style=run.schedule,
        lr_warmup_iters=iterations // 20,
        eval_interval=max(1, iterations // EVALUATIONS),
        save_interval=max(1, iterations // 4),
        save=folder,
        load=folder,
    )
    log = study.out / "logs" / f"{run.name.replace('/', '-')}.log"
    is_done = last_evaluation(folder / "validation.jsonl") == iterations
    return Step(" ".join(filter(None, (line, tokenizer(study.out), study.size.model_flags))), is_done, log)


def last_evaluation(path: Path) -> int:
    """The iteration of the last line of validation.jsonl; 0 without one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


def carry_out(step: Step) -> int:
    """Print and run the command of a step unless its result is there; returns its exit status."""
    print(f"$ {step.line}", flush=True)
    if step.is_done:
        print("  done before", flush=True)
        return 0
    started = time.monotonic()
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with step.log.open("a", encoding="utf-8") as log:
        command = shlex.split(step.line)
        status = subprocess.run(command, env=os.environ | offline, stdout=log, stderr=log, check=False).returncode
    if status:
        tail = step.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        print("\n".join((*tail, f"error: the step ended with status {status}; see {step.log}")), file=sys.stderr)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
