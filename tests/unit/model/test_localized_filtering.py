"""The filter of queries and keys: its formula, causality, documents, and how its parameters are cut and summed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from megatron_ext.model.init import sharded_parameters
from megatron_ext.model.localized_filtering import LocalizedFilter
from megatron_ext.parallel.world import World
from tests.unit.model.test_blocks import built, logits_of, tokens

NAME = "decoder.layers.0.self_attention.localized_filter."


def random_filter(**values: object) -> LocalizedFilter:
    """The filter of the first layer with values that matter everywhere."""
    module = built("filtered", **values).decoder.layers[0].self_attention.localized_filter
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def published(module: LocalizedFilter, x: torch.Tensor) -> torch.Tensor:
    """fp32, with weights `[out, in, 2 tokens, 1]` as published: padded at both ends, and cut to the sequence."""
    s, _, h = x.shape
    first = module.conv1.weight.view(h // 2, 2, h).transpose(1, 2)[..., None]
    second = module.conv2.weight.view(h, h // 2, 2)[..., None]
    image = x.permute(1, 2, 0)[..., None]  # [b, h, s, 1]
    image = functional.conv2d(image, first, module.conv1.bias, padding=(1, 0))[:, :, :s]
    image = functional.conv2d(image, second, module.conv2.bias, padding=(1, 0))[:, :, :s]
    total = x + image[..., 0].permute(2, 0, 1)
    return module.norm.weight * total / (total.square().mean(-1, keepdim=True) + module.norm.eps).sqrt()


def test_values_and_gradients_are_those_of_the_published_convolutions(world: World):
    module = random_filter()
    ours, theirs = (torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in "ab")
    upstream = torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(3))
    results = []
    for x, run in ((ours, lambda x: module(x, None)), (theirs, lambda x: published(module, x))):
        module.zero_grad()
        out = run(x)
        out.backward(upstream)
        results.append([out, x.grad, *(parameter.grad.clone() for parameter in module.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_a_token_reaches_itself_and_the_next_two(world: World):
    module = random_filter()
    x = torch.randn(16, 2, 32)
    changed = x.clone()
    changed[5] += 1.0
    moved = (module(x, None) - module(changed, None)).abs().amax((1, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [5, 6, 7]


def test_no_logit_depends_on_a_later_token(world: World):
    model = built("filtered").eval()
    later = tokens()
    later[:, 9:] = (later[:, 9:] + 1) % 100
    before, after = logits_of(model), model(later, torch.arange(16).expand(2, 16), None)
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.isclose(before[:, 9:], after[:, 9:]).all()


def test_a_document_is_filtered_as_if_it_stood_alone(world: World):
    module = random_filter(reset_attention_mask=True)
    x = torch.randn(8, 2, 32)
    starts = torch.tensor([[0, 0, 0, 3, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0, 0, 7]])
    found = module(x, starts)
    for row, pieces in enumerate([(slice(0, 3), slice(3, 4), slice(4, 8)), (slice(0, 7), slice(7, 8))]):
        for piece in pieces:
            alone = module(x[piece, row : row + 1], None)
            torch.testing.assert_close(found[piece, row : row + 1], alone)


@pytest.mark.parametrize("isolated", [True, False])
def test_the_model_filters_inside_documents_where_attention_stays_there(isolated: bool, world: World):
    values = {"reset_attention_mask": True} if isolated else {"reset_position_ids": True}
    model = built("filtered", init_method_std=0.3, **values)
    starts = torch.tensor([[0] * 7 + [7] * 9] * 2)
    first = tokens()
    first[:, 5:7] = (first[:, 5:7] + 1) % 100
    places = torch.arange(16).expand(2, 16)
    one, other = (model(ids, places, starts)[:, 7:] for ids in (tokens(), first))
    assert torch.allclose(one, other, rtol=0, atol=1e-5) == isolated


def test_values_are_made_of_what_is_not_filtered(world: World):
    """A filter that gives the same vector everywhere makes attention an average of the values, which still differ."""
    attention = built("filtered").decoder.layers[0].self_attention
    with torch.no_grad():
        attention.localized_filter.norm.weight.zero_()
    x = torch.randn(16, 2, 32)
    _, key, value = attention.get_query_key_value_tensors(x, attention.localized_filter(x, None))
    assert key.abs().max() == 0
    rows = attention.linear_qkv.weight.view(2, 4, 8, 32)[:, -1]
    torch.testing.assert_close(value, torch.einsum("sbh,gnh->sbgn", x, rows))


def test_frozen_projections_pass_the_gradient_on(world: World):
    model = built("filtered")
    for layer in model.decoder.layers:
        layer.self_attention.linear_qkv.requires_grad_(False)
    logits_of(model).square().sum().backward()
    layer = model.decoder.layers[0]
    assert layer.self_attention.linear_qkv.weight.grad is None
    assert layer.self_attention.localized_filter.conv1.weight.grad.abs().max() > 0


def test_names_shapes_and_first_values(world: World):
    shards = {shard.key: shard for shard in sharded_parameters(built("filtered")) if shard.key.startswith(NAME)}
    shapes = {key.removeprefix(NAME): tuple(shard.global_shape) for key, shard in shards.items()}
    assert shapes == {
        "conv1.weight": (32, 32), "conv1.bias": (16,), "conv2.weight": (32, 32), "conv2.bias": (32,),
        "norm.weight": (32,),
    }  # fmt: skip
    assert shards[NAME + "norm.weight"].data.eq(1).all() and shards[NAME + "conv1.bias"].data.eq(0).all()
    assert shards[NAME + "conv1.weight"].data.detach().std().item() == pytest.approx(0.02, rel=0.1)
    assert not shards[NAME + "conv1.weight"].data.equal(shards[NAME + "conv2.weight"].data)
    assert (
        shards[NAME + "conv1.bias"].data.tensor_model_parallel and shards[NAME + "conv1.weight"].data.partition_dim == 0
    )
    assert shards[NAME + "conv2.weight"].data.partition_dim == 1
