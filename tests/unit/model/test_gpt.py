"""The built model is the architecture that was asked for: its parameters, its logits, its loss."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.model import native_loss, norm, swiglu
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.counts import parameter_counts
from megatron_ext.model.gpt import PretrainGPT, build_model, positions_of
from megatron_ext.model.init import sharded_parameters
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.world import World
from megatron_ext.platform.cpu_kernels import CPU_KERNELS
from megatron_ext.platform.kernels import TORCH
from tests.unit.model.textbook import textbook_logits
from tests.unit.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_run

LLAMAS_KERNELS = {"row_sums", "logit_gradient", "swiglu", "swiglu_gradient", "rms_norm", "rms_norm_gradient"}


def built(architecture: str, **values: object) -> PretrainGPT:
    [model] = build_model(tiny_run(architecture, **values), VOCAB_SIZE, "cpu")
    return model


def tokens_and_labels(batch: int = 3, length: int = 16) -> tuple[Tensor, Tensor]:
    windows = torch.randint(0, VOCAB_SIZE, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return windows[:, :-1], windows[:, 1:]


def call(model: PretrainGPT, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
    return model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None, labels=labels)


def scrambled(model: PretrainGPT) -> dict[str, Tensor]:
    """Give every parameter, norms and biases too, a value that matters; full tensors by canonical name."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.dim() == 2 else parameter + 0.3 * noise)
    shards: dict[str, list] = {}
    for shard in sharded_parameters(model):
        shards.setdefault(shard.key, []).append(shard)
    return {
        name: torch.cat([shard.data.detach() for shard in sorted(parts, key=lambda shard: shard.global_offset)])
        for name, parts in shards.items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_as_many_as_counted(architecture: str, world: World):
    model = built(architecture)
    expected = parameter_counts(tiny_run(architecture).model, vocab_rows=128, max_positions=16).total
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_textbooks(architecture: str, world: World):
    model = built(architecture)
    weights = scrambled(model)
    tokens, _ = tokens_and_labels()
    with torch.no_grad():
        logits = call(model, tokens)
    expected = textbook_logits(tiny_run(architecture).model, weights, tokens)
    assert logits.shape == (3, 16, 128)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("architecture", ["llama", "megatron_default", "alibi"])
def test_loss_is_the_cross_entropy_of_the_logits_over_the_true_vocabulary(architecture: str, world: World):
    model = built(architecture)
    scrambled(model)
    tokens, labels = tokens_and_labels()
    losses = call(model, tokens, labels)
    logits = call(model, tokens)[..., :VOCAB_SIZE]
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 16)
    assert losses.dtype == torch.float32 and losses.is_contiguous()
    torch.testing.assert_close(losses, expected)


class Recorded:
    """The CPU kernels, and which of them were called."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(CPU_KERNELS, name)


@pytest.mark.skipif(CPU_KERNELS is None, reason="the kernels are not built, or no AVX-512 with bf16")
@pytest.mark.parametrize("fusion", [True, False])
def test_our_kernels_compute_bf16_on_a_cpu_unless_pytorchs_are_asked_for(
    fusion: bool, world: World, monkeypatch: pytest.MonkeyPatch
):
    losses = []
    for flag, dtype, names in ((None, True, LLAMAS_KERNELS), ("local", True, set()), (None, False, set())):
        recorded = Recorded()
        for module in (native_loss, norm, swiglu):
            monkeypatch.setattr(module, "CPU_KERNELS", recorded)
        model = built("llama", bf16=dtype, transformer_impl=flag, cross_entropy_loss_fusion=fusion)
        tokens, labels = tokens_and_labels()
        mask = torch.ones(labels.shape)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        losses.append((model(tokens, positions, None, labels=labels, loss_mask=mask) * mask).mean())
        losses[-1].backward()
        assert recorded.names == names
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untrained_model_knows_nothing(architecture: str, world: World):
    """Loss ln(100), not ln(128): padded rows are no candidates."""
    tokens, labels = tokens_and_labels()
    loss = call(built(architecture), tokens, labels).mean().item()
    assert loss == pytest.approx(math.log(VOCAB_SIZE), abs=0.05)


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_padding_changes_neither_loss_nor_gradient(architecture: str, world: World):
    tokens, labels = tokens_and_labels()
    results = []
    for rows in (100, 104, 256):
        model = built(architecture, padded_vocab_size=rows)
        losses = call(model, tokens, labels)
        losses.sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((losses.detach(), gradients))
    for losses, gradients in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        for name, gradient in gradients.items():
            expected = results[0][1][name]
            scale = float(expected.abs().max())
            torch.testing.assert_close(gradient[: len(expected)], expected, rtol=1e-5, atol=1e-6 * scale)
            assert gradient[len(expected) :].count_nonzero() == 0, name


def test_tied_embeddings_are_one_parameter_with_both_gradients(world: World):
    tied = built("megatron_default")
    assert not hasattr(tied.output_layer, "weight") or tied.output_layer.weight is None
    assert tied.shared_embedding_or_output_weight() is tied.embedding.word_embeddings.weight
    tokens, labels = tokens_and_labels()
    call(tied, tokens, labels).sum().backward()
    absent = sorted(set(range(VOCAB_SIZE)) - set(tokens.flatten().tolist()))[0]
    assert tied.embedding.word_embeddings.weight.grad[absent].count_nonzero() > 0, "as an output it has a gradient"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"position_embedding_type": "learned_absolute"}, Positions()),
        ({"position_embedding_type": "none"}, Positions()),
        ({"position_embedding_type": "alibi"}, Positions(alibi=True)),
        (
            {"position_embedding_type": "rope", "rotary_base": 5e5, "rotary_percent": 0.5},
            Positions(rotary=Rotary(5e5, 0.5)),
        ),
        (
            {"position_embedding_type": "rope", "rotary_interleaved": True, "use_rope_scaling": True},
            Positions(rotary=Rotary(interleaved=True, scaling=RopeScaling("llama3", 8.0, 8192))),
        ),
        ({"position_embedding_type": "rope", "reset_position_ids": True}, Positions(rotary=Rotary(), restart=True)),
        ({"position_embedding_type": "rope", "reset_attention_mask": True}, Positions(rotary=Rotary(), isolate=True)),
        (
            {"position_embedding_type": "rope", "reset_attention_mask": True, "reset_position_ids": True},
            Positions(rotary=Rotary(), isolate=True),
        ),
        (
            {"position_embedding_type": "learned_absolute", "reset_attention_mask": True, "reset_position_ids": True},
            Positions(isolate=True),
        ),
        ({"position_embedding_type": "learned_absolute", "reset_position_ids": True}, Positions()),
        ({"position_embedding_type": "alibi", "reset_attention_mask": True}, Positions(alibi=True, isolate=True)),
    ],
)
def test_attention_is_told_about_positions(values: dict, expected: Positions, world: World):
    run = tiny_run("megatron_default", **values)
    assert positions_of(run) == expected
    assert expected.reads_documents == (expected.isolate or expected.restart)
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    cores = [module for module in model.modules() if isinstance(module, CausalAttention)]
    assert [dataclasses.replace(core.positions, kernels=TORCH) for core in cores] == [expected, expected]
    learned = values["position_embedding_type"] == "learned_absolute"
    assert hasattr(model.embedding, "position_embeddings") is learned


def test_positions_reach_the_longest_sequence_of_the_model(world: World):
    model = built("megatron_default", max_position_embeddings=40)
    assert model.embedding.position_embeddings.weight.shape == (40, 32)


@pytest.mark.parametrize(("values", "dtype"), [({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16)])
def test_half_precision_holds_every_parameter_and_keeps_the_loss_fp32(values: dict, dtype: torch.dtype, world: World):
    model = built("llama", **values)
    tokens, labels = tokens_and_labels()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    losses = call(model, tokens, labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, call(built("llama"), tokens, labels), rtol=0, atol=2e-2)


def test_dropout_is_on_in_training_and_off_in_evaluation(world: World):
    model = built("llama", hidden_dropout=0.3)
    tokens, labels = tokens_and_labels()
    assert not torch.equal(call(model, tokens, labels), call(model, tokens, labels))
    model.eval()
    torch.testing.assert_close(call(model, tokens, labels), call(built("llama"), tokens, labels))


@pytest.mark.parametrize("granularity", ["selective", "full"])
def test_recomputation_changes_no_bit_of_the_gradient(granularity: str, world: World):
    tokens, labels = tokens_and_labels()
    gradients = []
    full = {"recompute_method": "uniform", "recompute_num_layers": 1} if granularity == "full" else {}
    for values in ({}, {"recompute_granularity": granularity, **full}):
        model = built("llama", hidden_dropout=0.1, attention_dropout=0.1, **values)
        torch.manual_seed(0)
        from megatron.core import tensor_parallel

        tensor_parallel.model_parallel_cuda_manual_seed(0)
        call(model, tokens, labels).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient.equal(gradients[1][name]) for name, gradient in gradients[0].items())
