"""The comparator of the preprocessing benchmarks: the classic design, a pool over megatron-core's dataset builder.

Lines go through `Pool.imap(encode, lines, 32)` to worker processes, the lists of ids that come back go to
`IndexedDatasetBuilder.add_document` one by one. The tokenizers are the reference libraries.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from typing import Any, ClassVar

CHUNK = 32


class PlainEncoder:
    """The worker: one line to one list of ids.

    Args:
        kind: "sentencepiece" or "tokenizers".
        model: the tokenizer's file.
        eod_id: appended to each document.
    """

    encode: ClassVar[Callable[[str], list[int]]]

    def __init__(self, kind: str, model: str, eod_id: int) -> None:
        self.kind, self.model, self.eod_id = kind, model, eod_id

    def start(self) -> None:
        """Load the tokenizer in the worker."""
        PlainEncoder.encode = staticmethod(_loaded(self.kind, self.model))

    def __call__(self, line: str) -> list[int]:
        """Ids of one line, its end-of-document id included."""
        ids = PlainEncoder.encode(json.loads(line)["text"])
        ids.append(self.eod_id)
        return ids


def _loaded(kind: str, model: str) -> Callable[[str], list[int]]:
    if kind == "sentencepiece":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=model).encode
    import tokenizers

    tokenizer: Any = tokenizers.Tokenizer.from_file(model)
    return lambda text: tokenizer.encode(text).ids


def plain_preprocess(encoder: PlainEncoder, vocab_size: int, path: str, prefix: str, workers: int) -> None:
    """Write `PREFIX.bin` and `PREFIX.idx` from JSON lines."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    with (
        open(path, encoding="utf-8") as lines,
        multiprocessing.get_context("fork").Pool(workers, encoder.start) as pool,
    ):
        for ids in pool.imap(encoder, lines, CHUNK):
            builder.add_document(ids, [len(ids)])
        pool.close()
        pool.join()
    builder.finalize(f"{prefix}.idx")
