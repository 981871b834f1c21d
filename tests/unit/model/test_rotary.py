"""Rotary embedding is a rotation in the complex plane, megatron-core's own, undone by its gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.model.rotary import apply_rotary
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.platform.cpu import adapt
from tests.unit.model.textbook import turned

PLAIN = [
    (Rotary(), 16), (Rotary(percent=0.5), 16), (Rotary(500_000.0, 0.25), 16), (Rotary(), 6), (Rotary(100.0, 0.75), 8),
    (Rotary(interleaved=True), 16), (Rotary(percent=0.5, interleaved=True), 16), (Rotary(100.0, 0.25, True), 24),
]  # fmt: skip
SCALED = [
    (Rotary(scaling=RopeScaling("linear", 4.0)), 16),
    (Rotary(100.0, 0.5, True, RopeScaling("ntk", 3.0)), 16),
    (Rotary(100.0, 1.0, False, RopeScaling("llama3", 8.0, 64)), 16),
    (Rotary(100.0, 1.0, True, RopeScaling("yarn", 4.0, 64, attention_factor=1.0)), 16),
]
CASES = PLAIN + SCALED
YARN = Rotary(100.0, 0.5, True, RopeScaling("yarn", 4.0, 64))


def random_heads(length: int = 9, hn: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(length, 2, 3, hn, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rotary", "hn"), CASES)
def test_each_pair_turns_in_the_complex_plane(rotary: Rotary, hn: int):
    x = random_heads(hn=hn)
    torch.testing.assert_close(apply_rotary(x, rotary).double(), turned(x, rotary), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rotary", "hn"), PLAIN)
def test_it_is_megatron_cores(rotary: Rotary, hn: int, dtype: torch.dtype):
    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    adapt()  # theirs asks for the current CUDA device
    x = random_heads(hn=hn).to(dtype)
    one = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    theirs = RotaryEmbedding(
        hn, rotary.percent, rotary.interleaved, rotary_base=rotary.base, use_cpu_initialization=True, cp_group=one
    )
    config = SimpleNamespace(
        apply_rope_fusion=False,
        rotary_interleaved=rotary.interleaved,
        multi_latent_attention=False,
        fused_single_qkv_rope=False,
    )
    expected = apply_rotary_pos_emb(x, theirs(x.shape[0]), config, cp_group=one)
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(apply_rotary(x, rotary), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rotary", "hn"), CASES)
def test_the_gradient_turns_back(rotary: Rotary, hn: int):
    """A rotation is orthogonal: its transpose, which is its gradient, is its inverse."""
    x = random_heads(hn=hn).requires_grad_()
    upstream = apply_rotary(random_heads(hn=hn, seed=1), rotary)
    apply_rotary(x, rotary).backward(upstream)
    torch.testing.assert_close(x.grad, random_heads(hn=hn, seed=1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rotary", [Rotary(percent=0.5), YARN])
def test_the_gradient_is_autograds(rotary: Rotary):
    x = random_heads().requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = random_heads(seed=2)
    apply_rotary(x, rotary).backward(upstream)
    turned(exact, rotary).backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0, atol=5e-6)


@pytest.mark.parametrize("rotary", [Rotary(), YARN])
def test_scores_depend_on_the_distance_alone(rotary: Rotary):
    """The point of it: q at position i and k at j meet as if at i - j."""
    query, key = random_heads(1, seed=3).expand(12, 2, 3, 16), random_heads(1, seed=4).expand(12, 2, 3, 16)
    q, k = apply_rotary(query, rotary), apply_rotary(key, rotary)
    scores = torch.einsum("ibnh,jbnh->bnij", q, k)
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], rtol=0, atol=2e-5)


def test_position_zero_and_the_passed_dimensions_stay_bit_for_bit():
    x = random_heads()
    out = apply_rotary(x, Rotary(percent=0.5))
    assert out[0].equal(x[0]) and out[..., 8:].equal(x[..., 8:])
    assert not out[1:, ..., :8].equal(x[1:, ..., :8])


def test_the_input_is_left_alone_and_its_layout_does_not_matter():
    x = random_heads()
    before = x.clone()
    expected = apply_rotary(x, Rotary())
    assert x.equal(before)
    assert apply_rotary(x.transpose(0, 1).contiguous().transpose(0, 1), Rotary()).equal(expected)


def test_lengths_bases_and_types_do_not_share_tables():
    """The tables are cached; a second shape must not get the first one's."""
    for length, base, dtype in ((5, 1e4, torch.float32), (9, 1e4, torch.float32), (5, 1e5, torch.float32)) * 2:
        x = random_heads(length).to(dtype)
        torch.testing.assert_close(apply_rotary(x, Rotary(base)).double(), turned(x, Rotary(base)), rtol=0, atol=5e-6)
    assert apply_rotary(random_heads(5).bfloat16(), Rotary()).dtype == torch.bfloat16


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_given_positions_take_the_place_of_the_row_and_turn_back(fraction: float):
    x = random_heads().requires_grad_()
    positions = torch.randint(0, 9, (9, 2), generator=torch.Generator().manual_seed(3))
    out = apply_rotary(x, Rotary(100.0, fraction), positions)
    for place in range(9):
        for row in range(2):
            at = torch.zeros(9, 1, 3, 16)
            at[positions[place, row]] = x[place, row]
            expected = apply_rotary(at, Rotary(100.0, fraction))[positions[place, row], 0]
            torch.testing.assert_close(out[place, row], expected)
    upstream = apply_rotary(random_heads(seed=1), Rotary(100.0, fraction), positions)
    out.backward(upstream)
    torch.testing.assert_close(x.grad, random_heads(seed=1), rtol=0, atol=2e-6)
    assert apply_rotary(x, Rotary(100.0, fraction), torch.arange(9)[:, None].expand(9, 2)).equal(
        apply_rotary(x, Rotary(100.0, fraction))
    )


def test_yarn_scales_the_rotated_channels_alone():
    x = random_heads()
    plain, scaled = (
        apply_rotary(x, Rotary(100.0, 0.5, True, RopeScaling("yarn", 4.0, 64, attention_factor=factor)))
        for factor in (1.0, 1.25)
    )
    torch.testing.assert_close(scaled[..., :8], 1.25 * plain[..., :8])
    assert scaled[..., 8:].equal(x[..., 8:])
