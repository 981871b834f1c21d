"""The path to Transformer Engine without the library: what it is given, and that it is not taken on a CPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from megatron_ext.config import load_run_config
from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.gpt import layer_spec
from megatron_ext.model.rotary import apply_rotary
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.model.te_attention import TransformerEngineAttention
from megatron_ext.parallel.sequence_chunks import part_of

MODEL = "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 8 --position-embedding-type"


class Kernel(torch.nn.Module):
    """Stands in for TEDotProductAttention: notes how it was built and called."""

    def __init__(self, config: object, **rest: object) -> None:
        super().__init__()
        self.built_with, self.weight = rest, torch.nn.Parameter(torch.zeros(1))

    def forward(self, query, key, value, mask, attn_mask_type):
        assert mask is None and attn_mask_type.name == "causal"
        return query + key + value


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("megatron.core.extensions.transformer_engine")
    module.TEDotProductAttention = Kernel
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("rotary", [Rotary(100.0), Rotary(100.0, 0.5, True, RopeScaling("yarn", 4.0, 64))])
def test_queries_and_keys_are_rotated_before_the_kernel(kernel: None, rotary: Rotary):
    attention = TransformerEngineAttention(None, Positions(rotary=rotary), layer_number=3).eval()
    q, k, v = torch.randn(3, 6, 2, 4, 8)
    expected = apply_rotary(q, rotary) + apply_rotary(k, rotary) + v
    assert torch.equal(attention(q, k, v, None), expected)
    assert attention.kernel.built_with == {"layer_number": 3}
    assert not attention.kernel.training


def test_ranks_of_a_sequence_rotate_by_the_places_of_their_parts(kernel: None):
    """The kernel itself goes round the ranks, and is given megatron-core's groups for it."""
    rotary, (q, k, v) = Rotary(100.0), torch.randn(3, 8, 2, 4, 8)
    whole = apply_rotary(q, rotary) + apply_rotary(k, rotary) + v
    for rank in range(2):
        cp = SimpleNamespace(size=lambda: 2, rank=lambda rank=rank: rank)
        groups = SimpleNamespace(cp=cp)
        attention = TransformerEngineAttention(None, Positions(rotary=rotary), pg_collection=groups)
        assert attention.kernel.built_with == {"pg_collection": groups}
        out = attention(*(part_of(x, rank, 2) for x in (q, k, v)), None)
        torch.testing.assert_close(out, part_of(whole, rank, 2), rtol=0, atol=0)


def test_the_kernel_adds_nothing_to_checkpoints(kernel: None):
    attention = TransformerEngineAttention(None, Positions())
    assert not attention.state_dict() and not list(attention.parameters())


@pytest.mark.parametrize(
    ("device", "positions", "installed", "expected"),
    [
        ("cuda", "rope", True, TransformerEngineAttention),
        ("cuda", "rope", False, CausalAttention),
        ("cuda", "rope --rotary-interleaved --use-rope-scaling --parallel-residual", True, TransformerEngineAttention),
        ("cuda", "rope --transformer-impl local", True, CausalAttention),
        ("cuda", "alibi", True, CausalAttention),
        ("cuda", "alibi --embedding-layernorm", True, CausalAttention),
        ("cpu", "rope --transformer-impl local", True, CausalAttention),
        ("cuda", "rope --context-parallel-size 2 --bf16", True, TransformerEngineAttention),
        ("cuda", "rope --context-parallel-size 2", True, CausalAttention),
        ("cuda", "rope --reset-attention-mask", True, CausalAttention),
        ("cuda", "rope --reset-position-ids", True, CausalAttention),
        ("cuda", "learned_absolute --reset-position-ids", True, TransformerEngineAttention),
    ],
)
def test_the_kernel_is_taken_on_a_gpu_that_has_it(device, positions, installed, expected, monkeypatch):
    monkeypatch.setattr("megatron_ext.platform.kernels.has_transformer_engine", lambda: installed)
    run = load_run_config(
        f"{MODEL} {positions}".split(), None, "model"
    ).run  # positions may bring flags about documents
    attention = layer_spec(run, device).submodules.self_attention.submodules.core_attention
    assert attention.func is expected


@pytest.mark.parametrize("positions", [Positions(alibi=True), Positions(isolate=True), Positions(restart=True)])
def test_what_the_kernel_cannot_do_is_not_given_to_it(kernel: None, positions: Positions):
    with pytest.raises(AssertionError, match="CausalAttention"):
        TransformerEngineAttention(None, positions)
