"""Logits with normalised rows and a multiplier, in the model: values, gradients, what is stored, what is exported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.gpt import PretrainGPT, build_model
from megatron_ext.model.output_layer import OutputLayer
from megatron_ext.parallel.world import World
from tests.unit.tiny import VOCAB_SIZE, tiny_run

WINDOWS = torch.randint(0, VOCAB_SIZE, (3, 17), generator=torch.Generator().manual_seed(0))
TOKENS, LABELS = WINDOWS[:, :-1], WINDOWS[:, 1:]


def built(architecture: str = "llama", **values: object) -> PretrainGPT:
    [model] = build_model(tiny_run(architecture, **values), VOCAB_SIZE, "cpu")
    return model


def call(model: PretrainGPT, labels: Tensor | None = None) -> Tensor:
    return model(TOKENS, torch.arange(16).expand_as(TOKENS), None, labels=labels)


def hidden_states(model: PretrainGPT) -> Tensor:
    """What the output layer gets, `[s, b, h]`."""
    seen = []
    handle = model.output_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    call(model)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("values", [{"norm_head": True}, {"logits_multiplier": 0.03}])
def test_parameters_are_named_shaped_marked_and_filled_as_without(values: dict, world: World):
    plain, ours = built(), built(**values)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for (name, expected), (_, found) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert found.equal(expected), name
    marks = {key: value for key, value in vars(plain.output_layer.weight).items() if not callable(value)}
    assert marks == vars(ours.output_layer.weight) and marks["tensor_model_parallel"]
    assert set(ours.sharded_state_dict()) == set(plain.sharded_state_dict())


@pytest.mark.parametrize("multiplier", [1.0, 0.03125, 3.7])
def test_norm_head_gives_the_products_with_unit_rows(multiplier: float, world: World):
    model = built(norm_head=True, logits_multiplier=multiplier)
    hidden, weight = hidden_states(model).double().detach(), model.output_layer.weight.double().detach()
    expected = multiplier * hidden @ functional.normalize(weight, dim=-1).T
    torch.testing.assert_close(call(model).transpose(0, 1).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_weights_gradient_has_no_part_along_its_row(world: World):
    model = built(norm_head=True)
    call(model, LABELS).sum().backward()
    weight = model.output_layer.weight
    hidden = hidden_states(model).detach().double()
    exact = weight.detach().double().requires_grad_()
    logits = hidden @ functional.normalize(exact, dim=-1).T[:, :VOCAB_SIZE]
    functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), LABELS.flatten(), reduction="sum").backward()
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    along = (weight.grad * weight).sum(-1)
    assert along.abs().max() < 1e-4 * weight.grad.norm(dim=-1).max()


def test_the_length_of_a_row_does_not_matter(world: World):
    model = built(norm_head=True)
    before = call(model)
    with torch.no_grad():
        model.output_layer.weight.mul_(torch.logspace(-2, 2, 128)[:, None])
    torch.testing.assert_close(call(model), before)


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])  # an output weight of its own, and a tied one
def test_a_power_of_two_as_multiplier_only_moves_the_exponent(architecture: str, world: World):
    assert (call(built(architecture)) / 32).equal(call(built(architecture, logits_multiplier=1 / 32)))


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_the_gradients_under_a_multiplier_are_those_of_multiplied_logits(architecture: str, world: World):
    plain, ours = built(architecture), built(architecture, logits_multiplier=0.3)
    logits = 0.3 * call(plain)[..., :VOCAB_SIZE]
    functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="sum").backward()
    call(ours, LABELS).sum().backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [{"bf16": True}, {"fp16": True}])
def test_half_precision_normalises_in_fp32(dtype: dict, world: World):
    half, full = built(norm_head=True, **dtype), built(norm_head=True)
    with torch.no_grad():
        full.output_layer.weight.copy_(half.output_layer.weight)
    expected = functional.normalize(full.output_layer.weight.double(), dim=-1).to(half.output_layer.weight.dtype)
    hidden = hidden_states(half)
    assert half.output_layer(hidden)[0].equal(hidden @ expected.T)


def test_frozen_rows_are_normalised_too(world: World):
    model = built(norm_head=True)
    before = call(model)
    model.output_layer.weight.requires_grad_(False)
    torch.testing.assert_close(call(model), before)
    call(model, LABELS).sum().backward()
    assert model.output_layer.weight.grad is None and model.decoder.final_layernorm.weight.grad is not None


def test_the_kernel_that_adds_to_a_parameters_gradient_is_not_asked_for(world: World):
    """It would look for the buffer of the normalised weight, which has none."""
    plain = built().output_layer
    plain.gradient_accumulation_fusion = True
    run = tiny_run(norm_head=True)
    assert not OutputLayer(plain, run.model).gradient_accumulation_fusion


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_the_bias_is_added_and_learned_but_for_the_padded_rows(architecture: str, world: World):
    model = built(architecture, add_output_layer_bias=True)
    bias = model.output_layer.bias
    assert bias.eq(0).all() and len(bias) == 128 and bias.tensor_model_parallel
    assert call(model).equal(call(built(architecture)))
    with torch.no_grad():
        bias.copy_(torch.linspace(-1, 1, 128))
    torch.testing.assert_close(call(model), call(built(architecture)) + bias)
    call(model, LABELS).sum().backward()
    exact = call(model).detach()[..., :VOCAB_SIZE].requires_grad_()
    functional.cross_entropy(exact.flatten(0, 1), LABELS.flatten(), reduction="sum").backward()
    torch.testing.assert_close(bias.grad[:VOCAB_SIZE], exact.grad.sum((0, 1)), rtol=1e-4, atol=1e-6)
    assert bias.grad[VOCAB_SIZE:].eq(0).all()


def test_max_z_loss_sees_the_bias(world: World):
    model = built(add_output_layer_bias=True)
    model.max_z_loss_weight = 0.5
    with torch.no_grad():
        model.output_layer.bias.copy_(torch.linspace(-1, 20, 128))  # a padded row has the largest logit
    losses = call(model, LABELS)
    torch.testing.assert_close(model.largest_logits, call(model)[..., :VOCAB_SIZE].amax(-1).detach())
    losses.sum().backward()
    exact = call(model).detach()[..., :VOCAB_SIZE].requires_grad_()
    total = functional.cross_entropy(exact.flatten(0, 1), LABELS.flatten(), reduction="sum")
    (total + 0.5 * exact.amax(-1).square().sum()).backward()
    torch.testing.assert_close(model.output_layer.bias.grad[:VOCAB_SIZE], exact.grad.sum((0, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"norm_head": True, "logits_multiplier": 0.5},
        {"add_output_layer_bias": True},
        {"untie_embeddings_and_output_weights": False, "max_z_loss_weight": 0.01},
    ],
)
def test_with_and_without_fusion_the_loss_and_every_gradient_are_the_same(values: dict, world: World):
    mask = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    found = []
    for fusion in (True, False):
        model = built(cross_entropy_loss_fusion=fusion, **values).train()
        waited: list[object] = []
        model.output_layer.register_forward_pre_hook(lambda layer, *_, waited=waited: waited.append(layer))
        losses, sizes = losses_and_what_is_kept(model, mask)
        assert waited == [model.output_layer], "megatron-core waits there for the weights that it gathers"
        assert (TOKENS.numel() * 128 in sizes) != fusion, "logits are kept without fusion only"
        (losses * mask).sum().backward()
        found.append([losses, *(parameter.grad for parameter in model.parameters())])
        assert (model.largest_logits is None) == ("max_z_loss_weight" not in values)
    for fused, whole in zip(*found, strict=True):
        torch.testing.assert_close(fused, whole, rtol=1e-5, atol=1e-6)


def losses_and_what_is_kept(model: PretrainGPT, mask: Tensor) -> tuple[Tensor, list[int]]:
    """The losses, and the sizes of all tensors that the backward pass will need."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(TOKENS, torch.arange(16).expand_as(TOKENS), None, labels=LABELS, loss_mask=mask)
    return losses, sizes


def test_fp16_is_never_fused(world: World):
    """A sum of gradients may overflow before the loss scale, which the backward pass brings, can make it small."""
    assert not built(fp16=True).fuses_loss and built(bf16=True).fuses_loss
