"""The gate of every export: the written folder, loaded by transformers in a new process, has the training logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5
"""Largest allowed difference of two fp32 logits, relative to the largest logit."""

RELOAD = Path(__file__).resolve().parent / "reload_hf.py"
SEQUENCES = 2


@dataclass(frozen=True)
class Parity:
    """How far two sets of fp32 logits are apart.

    Attributes:
        largest_difference: of one logit.
        largest_logit: absolute, of the training model.
        tokens: positions compared.
    """

    largest_difference: float
    largest_logit: float
    tokens: int

    @property
    def relative(self) -> float:
        """The difference in units of the largest logit."""
        return self.largest_difference / self.largest_logit if self.largest_logit else self.largest_difference

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance; never with a NaN on either side."""
        return self.relative <= TOLERANCE


def parity_tokens(vocab_size: int, count: int, max_length: int) -> list[list[int]]:
    """Two rows of token ids in [0, vocab_size), `count` in all where they fit; always the same, both ends in."""
    length = max(2, min(max_length, -(-count // SEQUENCES)))
    # A multiplicative walk visits ids of all sizes; 2654435761 is the golden ratio's share of 2^32.
    rows = [
        [((row * length + i) * 2654435761 % 2**32) * vocab_size // 2**32 for i in range(length)]
        for row in range(SEQUENCES)
    ]
    rows[-1][0] = vocab_size - 1
    return rows


def compare(reference: Tensor, found: Tensor) -> Parity:
    """Compare fp32 logits `[b, s, v]` of the training model and of the exported one.

    Raises:
        ConversionError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise ConversionError(
            f"the exported model gives logits {list(found.shape)}, the training model {list(reference.shape)}"
        )
    difference = (reference - found).abs().max().item()
    return Parity(difference, reference.abs().max().item(), reference.shape[0] * reference.shape[1])


def require(parity: Parity) -> None:
    """Raise ConversionError, with the numbers, unless `parity` holds."""
    if not parity.holds:
        raise ConversionError(
            f"the exported model computes something else: logits differ by {parity.largest_difference:.3e}, "
            f"the largest is {parity.largest_logit:.3e}",
            f"the relative difference {parity.relative:.3e} must be at most {TOLERANCE:.0e}",
            "nothing was published; this is a defect of the conversion, please report it with the model's settings",
        )


def reloaded(
    folder: Path, tokens: Sequence[Sequence[int]], texts: Sequence[str], own_code: bool, python: str = sys.executable
) -> tuple[Tensor, dict[str, Any]]:
    """Logits fp32 `[b, s, v]` and findings of `reload_hf.py` on `folder`, in a new process of the interpreter `python`.

    The process sees no network and no module cache but its own.

    Raises:
        ConversionError: the folder does not load; its last lines of output are in the message.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        request = {"tokens": [list(row) for row in tokens], "texts": list(texts), "own_code": own_code, "new_tokens": 2}
        (out / "request.json").write_text(json.dumps(request), encoding="utf-8")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_MODULES_CACHE": str(out / "modules")}
        done = subprocess.run(
            [python, "-P", str(RELOAD), str(folder.resolve()), str(out / "request.json"), str(out)],
            env={**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            tail = " | ".join(done.stderr.strip().splitlines()[-4:])
            raise ConversionError(f"transformers cannot load the exported folder: {tail}", fix="nothing was published")
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return load_file(out / "logits.safetensors")["logits"].clone(), result
