"""--compile: what torch.compile makes of RMSNorm and SwiGLU is what they are without it, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.model.gpt import build_model
from megatron_ext.parallel.world import start_world
from megatron_ext.platform.cpu import CpuPlatform
from tests.unit.tiny import VOCAB_SIZE, tiny_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore"),  # torch's own, of what it compiles
]


@pytest.mark.parametrize(("bf16", "near"), [(False, 1e-5), (True, 2e-2)], ids=["fp32", "bf16"])
def test_a_compiled_model_has_the_same_losses_and_gradients(bf16: bool, near: float):
    """In bf16 PyTorch's SwiGLU rounds silu(gate) before the product; a compiled one does not."""
    tokens = torch.randint(0, VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(0))
    with start_world(tiny_run(), CpuPlatform()):
        compiled, plain = (losses_and_gradients(bf16, compile, tokens) for compile in (True, False))
    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] == frames["total"] > 0, "something was compiled, and all of it"
    for name, expected in plain.items():
        bound = near * float(expected.abs().max())
        torch.testing.assert_close(compiled[name].float(), expected.float(), rtol=0, atol=bound, msg=name)


def losses_and_gradients(bf16: bool, compiled: bool, tokens: Tensor) -> dict[str, Tensor]:
    run = tiny_run("llama", bf16=bf16, compile=compiled, transformer_impl="local")
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    losses = model(tokens[:, :-1], torch.arange(16).expand(2, 16), None, labels=tokens[:, 1:])
    losses.sum().backward()
    return {"losses": losses.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}
