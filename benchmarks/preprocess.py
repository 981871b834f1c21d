#!/usr/bin/env python
"""Preprocessing, side by side: this project against a plain worker pool over megatron-core's IndexedDatasetBuilder.

Cases: `byte-level` (a GPT-2 style tokenizer.json, English), `sentencepiece` (BPE, Chinese and English), and
`long-document` (one document without a space, in several lengths, both kinds of tokenizer). Both sides read the same
file and write the same text; .bin and .idx are compared byte for byte before any time counts. Rounds alternate
between the sides; interpreter start and imports are not timed, forking workers and loading tokenizers in them is.
Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.corpora import documents, train_byte_level, train_sentence_piece, write_corpus
from benchmarks.sides.measure import measured, peak_mib, run_timed

SIDES = ("plain", "ours")
KINDS = {"byte-level": "tokenizers", "sentencepiece": "sentencepiece"}
CASES = (*KINDS, "long-document")
LONG_MB = (1.25, 2.5, 5.0, 10.0)


def main() -> None:
    """Make corpora and tokenizers, run both sides of each case in turns, compare, print."""
    options = parse_arguments()
    if options.side:
        print(json.dumps(measured(side_work(options))))
        return
    with tempfile.TemporaryDirectory(prefix="bench_preprocess_", dir=options.folder) as folder:
        for case in options.case or CASES:
            if case == "long-document":
                long_documents(options, Path(folder))
            else:
                corpus_case(case, options, Path(folder))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=None, help="cases to run (default: all)")
    parser.add_argument("--input", default=None, help="JSON lines with a text key (default: made from installed text)")
    parser.add_argument("--tokenizer-model", default=None, help="the tokenizer's file (default: trained on the input)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each side")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--size-mb", type=float, default=100.0, help="size of a corpus made here")
    parser.add_argument("--vocab-size", type=int, default=32000, help="vocabulary of a tokenizer trained here")
    parser.add_argument("--folder", default=None, help="where temporary files go (a memory disk measures no disk)")
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--kind", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--output", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def corpus_case(case: str, options: argparse.Namespace, folder: Path) -> None:
    """One corpus through both sides."""
    corpus, model = make_inputs(case, options, folder)
    rounds = both_sides(KINDS[case], corpus, model, options, folder)
    print(json.dumps({"benchmark": f"preprocess {case}", **told(rounds, Path(corpus), options)}))


def long_documents(options: argparse.Namespace, folder: Path) -> None:
    """One document without a space, in lengths that double: the ratio, and the exponent of time over length."""
    for case, kind in KINDS.items():
        corpus, model = make_inputs(case, options, folder)
        for name, unit in (("letters", "abcdefghijklmnopqrstuvwxyz"), ("one letter", "a"), ("text", spaceless(corpus))):
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for size_mb in LONG_MB:
                path = folder / "long.jsonl"
                size = int(size_mb * 1e6)
                text = (unit * (size // len(unit.encode()) + 1)).encode()[:size].decode("utf-8", "ignore")
                path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
                rounds = both_sides(kind, str(path), model, options, folder)
                for side, runs in rounds.items():
                    seconds[side].append(statistics.median(run["seconds"] for run in runs))
            result = {"benchmark": f"preprocess long document, {case}, {name}", **told(rounds, path, options)}
            print(json.dumps({**result, **growth(seconds)}), flush=True)


def growth(seconds: dict[str, list[float]]) -> dict[str, object]:
    """What ten megabytes cost over what one costs: without the start, which does not depend on the length."""
    more = {side: times[-1] - times[0] for side, times in seconds.items()}
    exponent = math.log(seconds["ours"][-1] / seconds["ours"][-2]) / math.log(LONG_MB[-1] / LONG_MB[-2])
    return {
        "seconds_by_mb": {side: [round(time, 3) for time in times] for side, times in seconds.items()},
        "ratio_without_start": round(more["plain"] / max(more["ours"], 1e-9), 2),
        "exponent_of_time_over_length": round(exponent, 2),
    }


def spaceless(corpus: str) -> str:
    """Real text of the corpus with its spaces taken out, about a megabyte."""
    with open(corpus, encoding="utf-8") as lines:
        parts = ["".join(json.loads(line)["text"].split()) for line, _ in zip(lines, range(2000), strict=False)]
    return "".join(parts)


def make_inputs(case: str, options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Paths of corpus and tokenizer: those given, or new ones (made once)."""
    corpus, model = folder / f"{case}.jsonl", folder / f"{case}.model"
    if not (options.input or corpus.exists()) or not (options.tokenizer_model or model.exists()):
        chinese = case == "sentencepiece"
        texts = documents(folder, 9.5 if chinese else 35.0, chinese)  # about all the Chinese there is, as much English
        write_corpus(texts, corpus, options.size_mb)
        (train_sentence_piece if chinese else train_byte_level)(texts, model, options.vocab_size)
    return options.input or str(corpus), options.tokenizer_model or str(model)


def both_sides(
    kind: str, corpus: str, model: str, options: argparse.Namespace, folder: Path
) -> dict[str, list[dict[str, float]]]:
    """Timed runs of each side in turns, their outputs compared after each."""
    command = [sys.executable, __file__, "--kind", kind, "--input", corpus, "--tokenizer-model", model]
    command += ["--workers", str(options.workers), "--output", str(folder)]
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            rounds[side].append(run_timed([*command, "--side", side]))
        refuse_different(folder)
    for side in SIDES:
        rounds[side][0]["peak_mib"] = peak_mib([*command, "--side", side])
    return rounds


def refuse_different(folder: Path) -> None:
    """End the benchmark when the two sides wrote different bytes."""
    for suffix in ("bin", "idx"):
        paths = [folder / f"{side}_text_document.{suffix}" for side in SIDES]
        if len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) != 1:
            raise SystemExit(f"the .{suffix} files differ")


def told(rounds: dict[str, list[dict[str, float]]], corpus: Path, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one case."""
    size_mb = corpus.stat().st_size / 1e6
    ratios = [p["seconds"] / o["seconds"] for p, o in zip(rounds["plain"], rounds["ours"], strict=True)]
    median = {side: statistics.median(run["seconds"] for run in runs) for side, runs in rounds.items()}
    return {
        "input_mb": round(size_mb, 2),
        "workers": options.workers,
        "rounds": options.rounds,
        "mb_per_s": {side: round(size_mb / seconds, 2) for side, seconds in median.items()},
        "ratio_to_plain_pool": round(statistics.median(ratios), 2),
        "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        "peak_mib": {side: runs[0]["peak_mib"] for side, runs in rounds.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def side_work(options: argparse.Namespace) -> Callable[[], object]:
    """One side's work, ready to start."""
    prefix = f"{options.output}/{options.side}"
    if options.side == "ours":
        from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
        from megatron_ext.data.rows.settings import RowSettings

        types = {"tokenizers": "HuggingFaceTokenizer", "sentencepiece": "GPTSentencePieceTokenizer"}
        request = PreprocessRequest(
            inputs=(options.input,),
            output_prefix=prefix,
            tokenizer_type=types[options.kind],
            tokenizer_model=options.tokenizer_model,
            rows=RowSettings(append_eod=True),
            workers=options.workers,
            overwrite=True,
        )
        return lambda: preprocess(request)
    from benchmarks.sides.plain_pool import PlainEncoder, plain_preprocess
    from megatron_ext.tokenizer.build import build_tokenizer

    kind = "HuggingFaceTokenizer" if options.kind == "tokenizers" else "GPTSentencePieceTokenizer"
    tokenizer = build_tokenizer(kind, options.tokenizer_model)
    encoder = PlainEncoder(options.kind, options.tokenizer_model, tokenizer.eod_id)
    return lambda: plain_preprocess(
        encoder, tokenizer.vocab_size, options.input, f"{prefix}_text_document", options.workers
    )


if __name__ == "__main__":
    main()
