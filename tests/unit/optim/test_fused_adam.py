"""A library's fused Adam trains as our AdamW does and keeps its state alike; here a stand-in has the library's manners.

Those of apex.optimizers.FusedAdam and transformer_engine.pytorch.optimizers.FusedAdam: the step count is in the group
and begins at 1, moments are created by the first step where there are none.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType

import pytest
import torch

from megatron_ext.optim.adamw import AdamW
from megatron_ext.optim.fused_adam import adam_of
from megatron_ext.platform.kernels import APEX, ENGINE, TORCH, Kernels
from tests.unit.optim.test_adamw import groups_of, parameters, trained
from tests.unit.tiny import tiny_components, tiny_run

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}


class LibraryAdam(torch.optim.Optimizer):
    """Textbook Adam, decoupled when `adam_w_mode`."""

    def __init__(self, params, lr, betas, eps, adam_w_mode, weight_decay) -> None:
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            (beta1, beta2), step = group["betas"], group["step"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update({name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")})
                first, second = state["exp_avg"], state["exp_avg_sq"]
                first.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                second.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + group["eps"])
                parameter.sub_(group["lr"] * (update + group["weight_decay"] * parameter))


@pytest.fixture(params=[ENGINE, APEX])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = {ENGINE: "transformer_engine.pytorch.optimizers", APEX: "apex.optimizers"}[request.param]
    module = ModuleType(name)
    module.FusedAdam = LibraryAdam
    monkeypatch.setitem(sys.modules, name, module)
    for parent in (name.rpartition(".")[0], name.partition(".")[0]):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    return request.param


def test_without_a_library_it_is_ours():
    assert adam_of(TORCH) is AdamW


def test_it_trains_as_ours_does(library: str):
    def make(kind):
        def built(groups):
            optimizer = kind(groups, **SETTINGS)
            optimizer.init_state()
            return optimizer

        return built

    theirs, ours = trained(make(adam_of(library)), (0.1, 0.0)), trained(make(AdamW), (0.1, 0.0))
    for step, tensors in enumerate(theirs):
        for their, our in zip(tensors, ours[step], strict=True):
            torch.testing.assert_close(their, our, rtol=1e-5, atol=1e-6)


def test_a_state_of_one_is_a_state_of_the_other(library: str):
    theirs, ours = (kind(groups_of(parameters(), (0.1, 0.0)), **SETTINGS) for kind in (adam_of(library), AdamW))
    for optimizer in (theirs, ours):
        optimizer.init_state()
    assert [set(state) for state in theirs.state.values()] == [set(state) for state in ours.state.values()]
    assert all(group["step"] == 0 for group in theirs.param_groups)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))


def test_the_builder_takes_it_where_the_choice_says_so(library: str, world, monkeypatch):
    monkeypatch.setattr("megatron_ext.optim.build.choose_kernels", lambda *_: Kernels(adam=library))
    rule = tiny_components(tiny_run(), world).optimizer.optimizer
    assert isinstance(rule, LibraryAdam) and len(rule.state) == sum(len(group["params"]) for group in rule.param_groups)
