"""Muon is its formula by singular values, matrix by matrix; what is no matrix of a layer is AdamW's to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_ext.optim.adamw import AdamW
from megatron_ext.optim.muon import (
    Matrices,
    Muon,
    MuonSettings,
    joined,
    matrices_of,
    muon_settings,
    newton_schulz,
    parts_of,
    scale_of,
)
from megatron_ext.optim.parameter_names import canonical_names
from megatron_ext.parallel.world import World
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.optim.test_adamw import ready
from tests.unit.tiny import TokenView, tiny_components, tiny_run


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """By the singular values alone, fp64: each goes through the polynomial of Keller Jordan's Muon."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 6), (5, 12), (12, 5), (1, 7)])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_iteration_works_on_singular_values(shape: tuple[int, int], steps: int):
    matrix = random(*shape)
    torch.testing.assert_close(
        newton_schulz(matrix, steps).double(), orthogonalised(matrix, steps), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(dtype: torch.dtype):
    """Five steps lift what is above some 1/500 of the norm; rows of a random matrix all are."""
    values = torch.linalg.svdvals(newton_schulz(random(24, 64).to(dtype), 5).float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_no_gradient_is_no_update():
    assert newton_schulz(torch.zeros(3, 5), 5).equal(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("mode", "wide", "tall"),
    [("spectral", 3.0, 3.0), ("unit_rms_norm", 2 / 3, 1.5), ("shape_scaling", 1.0, 1.5)],
)
def test_scales(mode: str, wide: float, tall: float):
    assert scale_of(torch.Size((4, 9)), mode) == pytest.approx(wide)
    assert scale_of(torch.Size((9, 4)), mode) == pytest.approx(tall)


def test_the_spectral_scale_gives_elements_of_size_one():
    update = newton_schulz(random(32, 80), 5) * scale_of(torch.Size((32, 80)), "spectral")
    assert update.square().mean().sqrt() == pytest.approx(1.0, abs=0.3)  # singular values are 0.7 to 1.2


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("matrices", "rows"),
    [
        (Matrices(), [range(12)]),
        (Matrices((3, 3)), [range(12)]),
        (Matrices((2, 1, 1), apart=True), [[0, 1, 4, 5, 8, 9], [2, 6, 10], [3, 7, 11]]),
    ],
    ids=["one", "two halves of one", "queries, keys, values"],
)
def test_it_is_its_formula(matrices: Matrices, rows: list, nesterov: bool):
    """In fp64, with the rows of each matrix picked out by their numbers."""
    theta, momentum = random(12, 7, 1).double(), torch.zeros(12, 7, dtype=torch.float64)
    weight = torch.nn.Parameter(theta.float())
    settings = MuonSettings(0.9, nesterov, 5, "spectral", 0.2)
    optimizer = ready(Muon([{"params": [weight], "matrices": matrices}], settings, lr=1e-2, weight_decay=0.3))
    for step in range(6):
        weight.grad = random(12, 7, 10 + step)
        optimizer.step()
        gradient = weight.grad.double()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = 0.9 * momentum + 0.1 * gradient if nesterov else momentum
        update = torch.empty_like(theta)
        for picked in map(list, rows):
            update[picked] = orthogonalised(direction[picked]) * 0.2 * math.sqrt(max(len(picked), 7))
        theta = theta - 1e-2 * (update + 0.3 * theta)
        torch.testing.assert_close(weight.detach().double(), theta, rtol=1e-4, atol=1e-5)
    assert set(optimizer.state[weight]) == {"momentum_buffer"} and optimizer.param_groups[0]["step"] == 6


def test_parts_come_together_again():
    share = random(12, 7)
    for matrices in (Matrices(), Matrices((6, 6)), Matrices((2, 1, 1), apart=True)):
        assert joined(parts_of(share, matrices), matrices).equal(share)


def test_it_agrees_with_torchs_to_bf16():
    """torch 2.13's Muon orthogonalises in bf16: the direction of an update is the same to some per mille."""
    ours, theirs = (torch.nn.Parameter(random(24, 40)) for _ in range(2))
    mine = ready(
        Muon(
            [{"params": [ours], "matrices": Matrices()}],
            MuonSettings(use_nesterov=True, scale_mode="shape_scaling"),
            lr=0.1,
            weight_decay=0.1,
        )
    )
    torchs = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1)
    for step in range(5):
        ours.grad = theirs.grad = random(24, 40, step)
        mine.step()
        torchs.step()
    moved, expected = ours.detach() - random(24, 40), theirs.detach() - random(24, 40)
    assert (moved - expected).norm() < 2e-2 * expected.norm()


def test_only_matrices_of_layers_are_orthogonalised(world: World):
    found = {}
    for architecture in ("llama", "megatron_default"):
        run = tiny_run(architecture, optimizer="muon")
        parts = tiny_components(run, world)
        found |= {name: matrices_of(run, name, p) for p, name in canonical_names(parts.models).items()}
        for group in parts.optimizer.param_groups:
            for parameter in group["params"]:
                expected = {"exp_avg", "exp_avg_sq"} if group["matrices"] is None else {"momentum_buffer"}
                assert set(parts.optimizer.optimizer.state[parameter]) == expected
    of_layers = {name for name in found if name.startswith("decoder.layers.") and "norm" not in name}
    assert {name for name, value in found.items() if value is not None} == {
        name for name in of_layers if name.endswith(".weight")
    }


def test_the_matrices_of_fused_weights_are_known(world: World):
    def of(name: str, **values: object) -> Matrices | None:
        run = tiny_run("grouped_queries", optimizer="muon", **values)
        return matrices_of(run, f"decoder.layers.0.{name}.weight", torch.empty(96, 32))

    assert of("self_attention.linear_qkv") == Matrices((16, 8, 8), apart=True)
    assert of("self_attention.linear_qkv", muon_split_qkv=False) == Matrices()
    assert of("mlp.linear_fc1") == Matrices((48, 48))
    assert of("mlp.linear_fc1", swiglu=False) == of("mlp.linear_fc2") == of("self_attention.linear_proj") == Matrices()


def test_the_rest_is_adamws_to_the_bit(world: World):
    """One step from the same start: embeddings, head and norms go where --optimizer adam puts them."""
    after = []
    for optimizer in ("adam", "muon"):
        parts = tiny_components(tiny_run(optimizer=optimizer, adam_beta2=0.95), world)
        names = canonical_names(parts.models)
        with open_readers(parts, TokenView(), 0, parts.run.global_batch_size_at) as readers:
            train_step(parts, TrainState(), readers)
        after.append({name: parameter.detach() for parameter, name in names.items()})
    for name, weight in after[0].items():
        orthogonal = name.startswith("decoder.layers.") and "norm" not in name
        assert after[1][name].equal(weight) is not orthogonal, name


def test_the_settings_reach_the_rule(world: World):
    run = tiny_run(
        optimizer="muon", muon_momentum=0.8, muon_use_nesterov=True, muon_num_ns_steps=3, muon_extra_scale_factor=0.2,
        muon_scale_mode="unit_rms_norm", adam_beta1=0.7, adam_beta2=0.8, adam_eps=1e-5, bf16=True,
    )  # fmt: skip
    rule = tiny_components(run, world).optimizer.optimizer
    assert rule.settings == MuonSettings(0.8, True, 3, "unit_rms_norm", 0.2, torch.bfloat16) == muon_settings(run)
    assert {(group["betas"], group["eps"]) for group in rule.param_groups} == {((0.7, 0.8), 1e-5)}
    assert isinstance(rule, AdamW) and muon_settings(tiny_run()).dtype == torch.float32


def test_factors_by_name_hold_within_its_groups(world: World):
    """A rate of zero keeps a matrix, whatever its direction."""
    parts = tiny_components(tiny_run(optimizer="muon", lr_multipliers=("*layers.1.mlp*=0",)), world)
    before = {name: p.detach().clone() for p, name in canonical_names(parts.models).items()}
    with open_readers(parts, TokenView(), 0, parts.run.global_batch_size_at) as readers:
        train_step(parts, TrainState(), readers)
    for parameter, name in canonical_names(parts.models).items():
        assert parameter.detach().equal(before[name]) is name.startswith("decoder.layers.1.mlp"), name
