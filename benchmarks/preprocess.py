#!/usr/bin/env python
"""Preprocessing, side by side: this project against a plain worker pool over megatron-core's IndexedDatasetBuilder.

The plain side reads lines, sends them through `Pool.imap(encode, lines, 32)` to the same number of workers with the
same SentencePiece model, and hands the lists that come back to the builder: the classic design. Both sides write the
same text; their .bin and .idx are compared byte for byte before any time counts. Rounds alternate between the sides;
interpreter start and imports are not timed. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

CHUNK = 32
VOCAB_SIZE = 8000


def main() -> None:
    """Make corpus and tokenizer if none are given, run both sides in turns, compare, print."""
    options = parse_arguments()
    if options.side:
        print(json.dumps(measured(SIDES[options.side](options))))
        return
    with tempfile.TemporaryDirectory(prefix="bench_preprocess_") as folder:
        options.output = folder
        options.input = options.input or installed_corpus(Path(folder), options.max_mb)
        options.tokenizer_model = options.tokenizer_model or trained_tokenizer(options.input, Path(folder))
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                rounds[side].append(timed(side, options))
            refuse_different(Path(folder))
        size_bytes = Path(options.input).stat().st_size
    wall, cpu = (
        {side: statistics.median(times[unit] for times in rounds[side]) for side in SIDES}
        for unit in ("seconds", "cpu_seconds")
    )
    result = {
        "benchmark": "preprocess",
        "input_mb": round(size_bytes / 1e6, 2),
        "workers": options.workers,
        "rounds": options.rounds,
        "mb_per_s": {side: round(size_bytes / 1e6 / median, 2) for side, median in wall.items()},
        "ratio_to_plain_pool": round(wall["plain"] / wall["ours"], 2),
        "cpu_ratio_to_plain_pool": round(cpu["plain"] / cpu["ours"], 2),
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", default=None, help="JSON lines with a text key (default: installed docstrings)")
    parser.add_argument("--tokenizer-model", default=None, help="a SentencePiece model (default: trained on the input)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each side")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--max-mb", type=float, default=16.0, help="size of the corpus made when none is given")
    parser.add_argument("--side", choices=("ours", "plain"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--output", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def cpu_seconds() -> float:
    """CPU time of this process and its finished children; on a busy machine it says more than wall time."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of a piece of work."""
    start, start_cpu = time.perf_counter(), cpu_seconds()
    work()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - start_cpu}


def timed(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Wall and CPU seconds of one side, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--input", options.input, "--output", options.output]
    command += ["--tokenizer-model", options.tokenizer_model, "--workers", str(options.workers)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def refuse_different(folder: Path) -> None:
    """End the benchmark when the two sides wrote different bytes."""
    for suffix in ("bin", "idx"):
        digests = {
            side: hashlib.sha256((folder / f"{side}_text_document.{suffix}").read_bytes()).hexdigest() for side in SIDES
        }
        if len(set(digests.values())) != 1:
            raise SystemExit(f"the .{suffix} files differ: {digests}")


def ours(options: argparse.Namespace) -> Callable[[], object]:
    """This project's preprocessing, ready to start."""
    from megatron_ext.data.preprocess import PreprocessRequest, preprocess

    request = PreprocessRequest(
        inputs=(options.input,),
        output_prefix=f"{options.output}/ours",
        tokenizer_type="GPTSentencePieceTokenizer",
        tokenizer_model=options.tokenizer_model,
        append_eod=True,
        workers=options.workers,
        log_interval=10**9,
        overwrite=True,
    )
    return lambda: preprocess(request)


class PlainEncoder:
    """The worker of the plain side: one line to one list of ids."""

    processor: ClassVar[Any]

    def __init__(self, model: str) -> None:
        self.model = model

    def start(self) -> None:
        """Load the tokenizer in the worker."""
        import sentencepiece

        PlainEncoder.processor = sentencepiece.SentencePieceProcessor(model_file=self.model)

    def __call__(self, line: str) -> tuple[list[int], int]:
        """Ids of one line, its end-of-document id included, and its size."""
        ids = self.processor.encode(json.loads(line)["text"])
        ids.append(self.processor.eos_id())
        return ids, len(line)


def plain(options: argparse.Namespace) -> Callable[[], object]:
    """The plain pool over megatron-core's builder, ready to start."""
    import sentencepiece
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    vocab_size = sentencepiece.SentencePieceProcessor(model_file=options.tokenizer_model).get_piece_size()
    prefix = f"{options.output}/plain_text_document"
    encoder = PlainEncoder(options.tokenizer_model)
    context = multiprocessing.get_context("fork")

    def work() -> None:
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
        with open(options.input, encoding="utf-8") as lines, context.Pool(options.workers, encoder.start) as pool:
            for ids, _ in pool.imap(encoder, lines, CHUNK):
                builder.add_document(ids, [len(ids)])
            pool.close()
            pool.join()
        builder.finalize(f"{prefix}.idx")

    return work


SIDES = {"plain": plain, "ours": ours}


def installed_corpus(folder: Path, max_mb: float) -> str:
    """The docstrings of the standard library and the installed packages as JSON lines, English only."""
    tool = Path(__file__).resolve().parent.parent / "tools" / "demo_corpus.py"
    command = [sys.executable, str(tool), "--out", str(folder), "--max-mb", str(max_mb), "--no-chinese"]
    subprocess.run(command, check=True, capture_output=True)
    return str(folder / "corpus.jsonl")


def trained_tokenizer(corpus: str, folder: Path) -> str:
    """A SentencePiece BPE model with byte fallback, trained on the corpus."""
    import sentencepiece

    with open(corpus, encoding="utf-8") as lines:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in json.loads(line)["text"].split("\n") if part),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=VOCAB_SIZE,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            input_sentence_size=200_000,
            minloglevel=2,
        )
    return str(folder / "tokenizer.model")


if __name__ == "__main__":
    main()
