"""Write checkpoints of small models with random weights, and the tokenizer that they were "trained" with.

python -m tests.e2e.random_checkpoint OUT CASE ...       CASE: a model of test_laws.py, also with _tied
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

VOCAB_LIMIT = 700
SEQ_LENGTH = 64


def train_tokenizer(path: Path) -> int:
    """A byte-fallback BPE tokenizer with user-defined symbols, on Python sources and Chinese; its number of pieces."""
    import sentencepiece

    from tests.unit.checkpoint_convert.test_tokenizer_files import KINDS, LINES

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, vocab_size=VOCAB_LIMIT - 1, minloglevel=2, num_threads=1,
        character_coverage=0.995, **KINDS["symbols"],
    )  # fmt: skip
    path.write_bytes(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()).get_piece_size()


def write(out: Path, case: str, tokenizer: Path, vocab_size: int) -> None:
    """One checkpoint under `out`: fp32, odd vocabulary, padded to a multiple of 128."""
    from megatron_ext.checkpoint.full import FullState, write_full
    from megatron_ext.config import DataConfig, RunConfig, TrainConfig
    from tests.unit.checkpoint_convert.references import random_weights
    from tests.unit.checkpoint_convert.test_laws import model_of

    name, _, tied = case.partition("_")
    model = model_of(name, bool(tied))
    run = RunConfig(
        model=model,
        train=TrainConfig(seq_length=SEQ_LENGTH),
        data=DataConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(tokenizer)),
    )
    padded = -(-vocab_size // 128) * 128
    weights = random_weights(model, vocab_size, padded, seed=len(case))
    write_full(out / case, FullState(run, vocab_size, weights.items(), [tokenizer], {"made_by": "a test"}))


def main(out: Path, cases: list[str]) -> None:
    """All cases, one process."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = out / "tokenizer.model"
    vocab_size = train_tokenizer(tokenizer)
    assert vocab_size % 2, "the vocabulary must be odd"
    for case in cases:
        write(out, case, tokenizer, vocab_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
