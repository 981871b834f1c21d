"""The optional blocks together: gradients against the textbook, recomputation, weight decay."""

from __future__ import annotations

import pytest
import torch
from megatron.core import tensor_parallel

from megatron_ext.model.gpt import PretrainGPT, build_model
from megatron_ext.parallel.world import World
from tests.unit.model.textbook import textbook_logits
from tests.unit.tiny import VOCAB_SIZE, tiny_components, tiny_run

WITH_BLOCKS = ["attention_bias", "output_and_down_bias", "bloom", "moss", "stretched", "filtered", "output_bias_tied"]


def built(architecture: str, **values: object) -> PretrainGPT:
    [model] = build_model(tiny_run(architecture, **values), VOCAB_SIZE, "cpu")
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, 16), generator=torch.Generator().manual_seed(0))


def logits_of(model: PretrainGPT) -> torch.Tensor:
    return model(tokens(), torch.arange(16).expand(2, 16), None)


@pytest.mark.parametrize("architecture", WITH_BLOCKS)
def test_gradients_are_the_textbooks(architecture: str, world: World):
    model = built(architecture)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    exact = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    upstream = torch.randn(2, 16, 128, generator=generator)
    logits_of(model).backward(upstream)
    textbook_logits(tiny_run(architecture).model, exact, tokens()).backward(upstream.double())
    for name, parameter in model.named_parameters():
        scale = float(exact[name].grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ["bloom", "output_and_down_bias", "filtered"])
def test_biases_and_the_embeddings_norm_are_not_decayed(architecture: str, world: World):
    parts = tiny_components(tiny_run(architecture), world)
    for group in parts.optimizer.param_groups:
        assert {parameter.dim() for parameter in group["params"]} == ({2} if group["wd_mult"] else {1})


@pytest.mark.parametrize(
    "values",
    [
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp")},
    ],
    ids=["full", "selective"],
)
@pytest.mark.parametrize("architecture", ["moss", "bloom", "stretched", "megatron_default", "filtered"])
def test_recomputation_changes_no_bit_of_the_gradient(architecture: str, values: dict, world: World):
    gradients = []
    for settings in ({}, values):
        model = built(architecture, hidden_dropout=0.1, attention_dropout=0.1, **settings)
        torch.manual_seed(0)
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        logits_of(model).logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient.equal(gradients[1][name]) for name, gradient in gradients[0].items())
