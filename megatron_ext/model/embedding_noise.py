"""NEFTune: uniform noise on the word embeddings of a training run, the same under every layout."""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor

from megatron_ext.parallel.sequence_chunks import part_of

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64, whose arithmetic is modulo 2^64
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


class EmbeddingNoise:
    """Adds noise to what comes out of the word embedding, before a norm, positions and multipliers; not in evaluation.

    embedded + alpha / sqrt(L h) * u, with u uniform in [-1, 1] and L the length of the sequences. u is a function of
    the seed, the place of the sample in the stream of the whole run, the token's place in the sample and the channel:
    not of ranks, batch sizes, restarts or sequence length.

    Attributes:
        places: int64 `[b]`, samples of the run before each sample of the next forward pass. A sample that is cut into n
            sequences has n rows.

    Args:
        alpha: size of the noise.
        seed: of the run.
        embedding: of a first pipeline stage; it gets a hook.
        context_group: the context-parallel group, whose ranks hold parts of every sequence.

    Source: arXiv:2310.05914, algorithm 1; where it enters, as in transformers (a hook on the input embeddings).
    """

    def __init__(
        self, alpha: float, seed: int, embedding: LanguageModelEmbedding, context_group: torch.distributed.ProcessGroup
    ) -> None:
        self.places: Tensor | None = None
        self._alpha = alpha
        digest = hashlib.blake2b(f"{seed}/neftune".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "little", signed=True)
        self._is_sequence_slice = embedding.reduce_scatter_embeddings
        self._tp_group, self._context_group = embedding.tp_group, context_group
        embedding.word_embeddings.register_forward_hook(self._add)

    def _add(self, module: torch.nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
        """`embedded` is `[b, s/cp, h]`, or under sequence parallelism without learned positions `[s/cp/tp, b, h]`."""
        if not module.training:
            return embedded
        assert self.places is not None, "noise is a function of the samples' places in the run"
        s_dim = 0 if self._is_sequence_slice else 1
        ranks, rank = (self._tp_group.size(), self._tp_group.rank()) if self._is_sequence_slice else (1, 0)
        own = embedded.size(s_dim)
        length = own * ranks * self._context_group.size()
        positions = torch.arange(length, device=embedded.device)
        if self._context_group.size() > 1:
            positions = part_of(positions, self._context_group.rank(), self._context_group.size())
        positions = positions[rank * own : (rank + 1) * own]
        tokens = token_numbers(self.places.to(embedded.device), embedded.size(1 - s_dim), length, positions)
        if self._is_sequence_slice:
            tokens = tokens.T
        noise = uniform(self._key, tokens, embedded.size(2))
        return embedded + noise.mul_(self._alpha / math.sqrt(length * embedded.size(2))).to(embedded.dtype)


def token_numbers(places: Tensor, rows: int, length: int, positions: Tensor) -> Tensor:
    """Return the number of each token among all tokens of the run, int64 `[rows, positions]`.

    Args:
        places: int64 `[samples]`, samples before each one.
        rows: sequences; each sample is cut into rows / samples of them.
        length: tokens of a sequence.
        positions: int64, the places in the sequence that are asked for.
    """
    cut = rows // len(places)
    first_row = (places[:, None] * cut + torch.arange(cut, device=places.device)).view(-1, 1)
    return first_row * length + positions


def uniform(key: int, tokens: Tensor, channels: int) -> Tensor:
    """Return numbers in (-1, 1), fp32 `[*tokens.shape, channels]`, exact and so the same on every device.

    Each token number starts a splitmix64 of its own, whose outputs are the channels.

    Args:
        key: the stream, a signed 64-bit number.
        tokens: int64, of any shape.
        channels: h.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    starts = _mix64(_mix64(tokens + _GOLDEN) + key)
    steps = torch.arange(1, channels + 1, device=tokens.device) * _GOLDEN
    bits = _mix64(starts[..., None] + steps)
    # 23 bits and a half fit a float: symmetric about 0, without rounding
    return ((bits >> 41) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-22).sub_(1.0)


def _mix64(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, in place; its shifts are logical, torch's keep the sign."""
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1])):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
