"""The whole path on this machine: corpus, tokenizer, dataset, training in two layouts, export, generation, a plot.

Every step is an ordinary command. Each is printed before it runs, so that it can be copied, changed and run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.errors import MegatronExtError, run_command

ROOT = Path(__file__).resolve().parent.parent
MARK = ".made_by_demo"
PLACES = (
    "corpus",
    "corpus/corpus.jsonl",
    "tokenizer/demo",
    "tokenizer/demo.model",
    "data/demo",
    "data/demo_text_document",
    "run",
    "run/tensorboard",
    "hf",
    "loss.png",
)
PROCESSES = 4
"""Of the step that starts most of them."""
PROMPTS = ("这本书", "Return a new")


@dataclass(frozen=True)
class Size:
    """How much of everything; `vocab_size` in tokens, `corpus_mb` per language."""

    corpus_mb: float
    vocab_size: int
    train_iters: int
    chinese: bool


FULL = Size(corpus_mb=4, vocab_size=8000, train_iters=500, chinese=True)
QUICK = Size(corpus_mb=0.3, vocab_size=1000, train_iters=20, chinese=False)


@dataclass(frozen=True)
class Step:
    """One command of the demo: what it shows, the line to type, how many processes it starts."""

    title: str
    line: str
    processes: int = 1


def main(argv: list[str]) -> int:
    """Run all steps; returns the exit status of the first that fails, otherwise 0."""
    args = parse_args(argv)
    out = from_root(Path(args.out))
    os.chdir(ROOT)
    prepare(out)
    started = time.monotonic()
    steps = plan(out, QUICK if args.quick else FULL, gpus())
    for number, step in enumerate(steps, 1):
        elapsed = time.monotonic() - started
        print(f"\n[{number}/{len(steps)}] {step.title}  ({elapsed:.0f} s so far)\n$ {step.line}", flush=True)
        status = subprocess.run(shlex.split(step.line), env=environment(step.processes), check=False).returncode
        if status != 0:
            print(f"\nThe demo stopped: step {number} ({step.title}) ended with status {status}.", file=sys.stderr)
            return status
    print(closing(out, time.monotonic() - started))
    return 0


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="tools/demo.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--out", default=str(ROOT / "demo"), metavar="DIR", help="folder for all results (default: demo)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps on a little English text: does it run at all?"
    )
    return parser.parse_args(argv)


def prepare(out: Path) -> None:
    """Make an empty folder; one that an earlier demo made is emptied, any other that is not empty is refused."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARK).is_file():
            what = f"{out} exists and was not made by the demo"
            raise MegatronExtError(what, "the demo empties its folder first", "choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def gpus() -> int:
    """How many GPUs training would see."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def plan(out: Path, size: Size, gpus: int = 0) -> list[Step]:
    """The commands, in order; a user can type each of them from the project's root.

    With `gpus`, but fewer than the processes of a step, training is on the CPU: every process needs its own.
    """
    python = shlex.quote(str(from_root(Path(sys.executable))))
    here = {name: shlex.quote(f"{out}/{name}") for name in PLACES}
    model = f"--tokenizer-type SentencePieceTokenizer --tokenizer-model {here['tokenizer/demo.model']}"
    train = (
        f"pretrain_gpt.py --config configs/models/tiny.yaml --config examples/demo.yaml {model}"
        f" --data-path {here['data/demo_text_document']} --train-iters {size.train_iters}"
        f" --save {here['run']} --tensorboard-dir {here['run/tensorboard']}"
        + (" --device cpu" if 0 < gpus < PROCESSES else "")
    )
    torchrun = f"{python} -m torch.distributed.run --standalone --nproc-per-node"
    prompts = shlex.join(PROMPTS)
    return [
        Step(
            "text: Chinese reviews and news, English documentation",
            f"{python} tools/demo_corpus.py --out {here['corpus']} --max-mb {size.corpus_mb:g}"
            + ("" if size.chinese else " --no-chinese"),
        ),
        Step(
            "a tokenizer trained on it",
            f"{python} tools/train_tokenizer.py --input {here['corpus/corpus.jsonl']}"
            f" --output-prefix {here['tokenizer/demo']} --vocab-size {size.vocab_size}",
        ),
        Step(
            "the indexed dataset",
            f"{python} tools/preprocess_data.py --input {here['corpus/corpus.jsonl']}"
            f" --output-prefix {here['data/demo']} {model} --append-eod --workers 2",
        ),
        Step(
            "training on 4 processes, tensor parallel 2 x pipeline parallel 2, up to half way",
            f"{torchrun} {PROCESSES} {train} --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"
            f" --exit-interval {size.train_iters // 2}",
            processes=PROCESSES,
        ),
        Step(
            "the same run goes on in another layout: 2 processes, data parallel 2",
            f"{torchrun} 2 {train} --load {here['run']}",
            processes=2,
        ),
        Step(
            "export to Hugging Face; the export compares its logits with the training model's",
            f"{python} checkpoint_convert/megatron_to_hf.py --load {here['run']} --save {here['hf']}",
        ),
        Step(
            "transformers loads the export and goes on writing",
            f"{python} examples/generate.py --model {here['hf']} --temperature 0.7 --prompt {prompts}",
        ),
        Step("the curves", f"{python} tools/plot_run.py {here['run']} --output {here['loss.png']}"),
    ]


def from_root(path: Path) -> Path:
    """The path as typed from the project's root where it lies below it, otherwise absolute."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def environment(processes: int) -> dict[str, str]:
    """The environment of a step: cores shared out between its processes, no question to any model hub."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // processes))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return os.environ | offline | {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}


def closing(out: Path, seconds: float) -> str:
    """What happened and where everything is."""
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    python = from_root(Path(sys.executable))
    losses = [line["lm_loss"] for line in lines if line.get("lm_loss") is not None]
    last = losses[-max(1, len(losses) // 20) :]
    amount = f"{lines[-1]['consumed_tokens']:,} tokens and {lines[-1]['iteration']} iterations"
    return "\n".join(
        (
            "",
            f"Done in {seconds / 60:.1f} minutes. Over {amount}, the loss went from {losses[0]:.2f}"
            f" to {sum(last) / len(last):.2f} (mean of the last {len(last)} steps).",
            f"  the model, for transformers  {out}/hf",
            f"  checkpoints and metrics      {out}/run",
            f"  loss plot                    {out}/loss.png",
            f"  TensorBoard                  {python} -m tensorboard.main --logdir {out}/run/tensorboard",
        )
    )


if __name__ == "__main__":
    run_command(main)
