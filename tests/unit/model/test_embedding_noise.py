"""NEFTune's noise is what the paper says, in training only, and a function of the token's place in the run alone."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ext.model.embedding_noise import token_numbers, uniform
from megatron_ext.model.gpt import PretrainGPT
from megatron_ext.native_numpy import mix64
from megatron_ext.parallel.world import World
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.tiny import VOCAB_SIZE, TokenView, tiny_components, tiny_run

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def by_hand(key: int, token: int, channel: int) -> float:
    """The same number in Python's integers."""
    start = mix64((mix64((token + GOLDEN) & MASK) + key) & MASK)
    bits = mix64((start + (channel + 1) * GOLDEN) & MASK)
    return ((bits >> 41 & 0x7FFFFF) + 0.5) / 2**22 - 1.0


@pytest.mark.parametrize("key", [0, 12345, -(1 << 62) - 7])
def test_the_numbers_are_those_of_splitmix64(key: int):
    tokens = torch.tensor([[0, 1], [77, 1 << 40]])
    found = uniform(key, tokens, 5)
    assert found.shape == (2, 2, 5) and found.dtype == torch.float32
    for place, token in (((0, 0), 0), ((0, 1), 1), ((1, 0), 77), ((1, 1), 1 << 40)):
        assert found[place].tolist() == [by_hand(key, token, channel) for channel in range(5)]
    assert tokens.tolist() == [[0, 1], [77, 1 << 40]], "the caller's numbers stay"


def test_they_are_uniform_and_independent():
    """Mean, spread, tails; neither neighbouring channels nor neighbouring tokens go together (5 sigma)."""
    numbers = uniform(3, torch.arange(1000), 200).double()
    sigma = 1 / math.sqrt(numbers.numel())
    assert abs(numbers.mean()) < 5 * sigma * math.sqrt(1 / 3)
    assert numbers.square().mean() == pytest.approx(1 / 3, abs=5 * sigma * math.sqrt(4 / 45))
    assert -1.0 < numbers.min() < -0.9999 and 0.9999 < numbers.max() < 1.0
    for other in (numbers.roll(1, 0), numbers.roll(1, 1)):
        assert abs((numbers * other).mean()) < 5 * sigma / 3


def test_a_token_has_its_number_however_samples_are_cut():
    places, everything = torch.tensor([4, 9]), torch.arange(12)
    whole = token_numbers(places, 2, 12, everything)
    assert whole.tolist() == [list(range(48, 60)), list(range(108, 120))]
    assert token_numbers(places, 6, 4, everything[:4]).view(2, 12).equal(whole)
    assert token_numbers(places, 2, 12, everything[6:]).equal(whole[:, 6:])


def built(world: World, architecture: str = "llama", **values: object) -> PretrainGPT:
    return tiny_components(tiny_run(architecture, **values), world).models[0]


@pytest.mark.parametrize("architecture", ["llama", "megatron_default", "bloom", "norm_head"])
def test_it_is_added_to_the_word_embedding_in_training_only(architecture: str, world: World):
    """Before positions, the embedding's norm and the multiplier, of size alpha / sqrt(L h)."""
    plain, noisy = (built(world, architecture, neftune_noise_alpha=alpha) for alpha in (0.0, 5.0))
    tokens, positions = torch.randint(0, VOCAB_SIZE, (2, 16)), torch.arange(16).expand(2, 16)
    seen = []
    norm = getattr(noisy.embedding, "word_embeddings_layernorm", None)
    if norm is None:
        noisy.embedding.word_embeddings.register_forward_hook(lambda *call: seen.append(call[2]))
    else:
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    noisy(tokens, positions, None, places=torch.tensor([3, 4]))
    added = (seen[0] - plain.embedding.word_embeddings.weight[tokens]).detach()
    h = added.size(2)
    key = noisy.embedding_noise._key
    expected = uniform(key, torch.arange(48, 80).view(2, 16), h) * 5.0 / math.sqrt(16 * h)
    torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-6)
    for model in (plain, noisy):
        model.eval()
    assert noisy(tokens, positions, None).equal(plain(tokens, positions, None))


def losses(world: World, view: TokenView, start: int = 0, steps: int = 3, **values: object) -> list[float]:
    parts = tiny_components(tiny_run(neftune_noise_alpha=5.0, lr=1e-30, **values), world, train=view)
    batch, length = parts.run.global_batch_size_at, parts.run.seq_length_at
    state, found = TrainState(start, start * parts.run.global_batch_size), []
    with open_readers(parts, view, state.consumed_samples, batch, seq_length=length) as readers:
        for _ in range(steps):
            result = train_step(parts, state, readers)
            state.advance(result)
            found.append(result.lm_loss)
    return found


def test_every_step_has_its_own_noise_whatever_the_micro_batches_and_restarts(world: World):
    view = TokenView(samples=4)  # the same four samples in each step
    whole = losses(world, view)
    assert len(set(whole)) == 3
    assert losses(world, view, 2, 1) == whole[2:]
    assert losses(world, view, micro_batch_size=1) == pytest.approx(whole, rel=1e-6)


def test_a_batch_twice_as_large_has_the_noise_of_both(world: World):
    """Places count samples of the run, not of the batch."""
    view = TokenView(samples=8)
    small = losses(world, view, steps=2)
    [large] = losses(world, view, steps=1, global_batch_size=8)
    assert large == pytest.approx(sum(small) / 2, rel=1e-6)
