#!/usr/bin/env python
"""Peak memory of preprocessing from 10 MB to 2 GB of input: the whole process tree, shared pages counted once.

Each size is one run of this project's preprocessing with two workers and a byte-level BPE tokenizer. The input is the
same text again and again, the same for every size. Prints one JSON line; `growth` is the largest peak over the
smallest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.corpora import documents, train_byte_level, write_corpus
from benchmarks.sides.measure import peak_mib


def main() -> None:
    """Run every size, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes-mb", type=float, nargs="+", default=[10, 100, 500, 2000], help="sizes of the input")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--folder", default=None, help="where temporary files go; the largest size needs twice its room"
    )
    options = parser.parse_args()
    preprocess = Path(__file__).with_name("preprocess.py")
    with tempfile.TemporaryDirectory(prefix="bench_memory_", dir=options.folder) as name:
        folder = Path(name)
        texts = documents(folder, 35.0, chinese=False)
        train_byte_level(texts[::4], folder / "tokenizer.json", 32000)
        peaks: dict[str, float] = {}
        for size_mb in options.sizes_mb:
            corpus = folder / "sized.jsonl"
            write_corpus(texts, corpus, size_mb)
            command = [
                sys.executable,
                str(preprocess),
                "--side",
                "ours",
                "--kind",
                "tokenizers",
                "--input",
                str(corpus),
            ]
            command += ["--tokenizer-model", str(folder / "tokenizer.json"), "--output", name]
            peaks[f"{size_mb:g}"] = peak_mib([*command, "--workers", str(options.workers)])
    growth = max(peaks.values()) / min(peaks.values())
    print(json.dumps({"benchmark": "preprocess memory", "peak_mib_by_input_mb": peaks, "growth": round(growth, 3)}))


if __name__ == "__main__":
    main()
