"""Whose kernels compute: what is installed, unless the flag says otherwise; a namesake of Apex is not Apex."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest

from megatron_ext.errors import ConfigError
from megatron_ext.platform import cpu_kernels, kernels
from megatron_ext.platform.kernels import (
    APEX,
    COMPILED,
    ENGINE,
    NATIVE,
    TORCH,
    Kernels,
    choose_kernels,
    describe_kernels,
    has_apex,
)

NVIDIAS = {
    "apex.normalization.fused_layer_norm": {"fused_rms_norm_affine": None},
    "apex.optimizers": {"FusedAdam": None},
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    def install(engine: bool, apex: bool, triton: bool = False) -> None:
        monkeypatch.setattr(kernels, "has_transformer_engine", lambda: engine)
        monkeypatch.setattr(kernels, "has_apex", lambda: apex)
        monkeypatch.setattr(kernels, "has_triton", lambda: triton)

    return install


@pytest.mark.parametrize(
    ("device", "flag", "engine", "apex", "expected"),
    [
        ("cuda", None, False, False, Kernels()),
        ("cuda", None, True, False, Kernels(attention=ENGINE, adam=ENGINE)),
        ("cuda", None, False, True, Kernels(norm=APEX, adam=APEX)),
        ("cuda", None, True, True, Kernels(attention=ENGINE, norm=APEX, adam=ENGINE)),
        ("cuda", "transformer_engine", True, False, Kernels(attention=ENGINE, adam=ENGINE)),
        ("cuda", "local", True, True, Kernels()),
        ("cpu", "local", True, True, Kernels()),
    ],
)
def test_what_is_installed_computes_on_a_gpu(installed, device, flag, engine, apex, expected):
    installed(engine, apex)
    assert choose_kernels(device, flag) == expected


def test_a_gpu_runs_what_torch_compile_makes_where_triton_is_there(installed):
    installed(False, False, triton=True)
    assert choose_kernels("cuda") == Kernels(elementwise=COMPILED)
    assert choose_kernels("cuda", "local") == Kernels()
    assert choose_kernels("cuda", "local", compiled=True) == Kernels(elementwise=COMPILED)
    assert "SwiGLU, RoPE and losses torch.compile" in describe_kernels("cuda")
    assert choose_kernels("cpu", "local") == Kernels()


def test_triton_is_of_no_use_without_a_c_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "triton" else None)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: name if name == "clang" else None)
    assert kernels.has_triton()
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    assert not kernels.has_triton()


def test_a_cpu_runs_our_kernels_where_it_can(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_kernels, "CPU_KERNELS", object())
    assert choose_kernels("cpu") == Kernels(attention=NATIVE, norm=NATIVE, elementwise=NATIVE, adam=TORCH)
    assert describe_kernels("cpu").endswith("Adam torch (SwiGLU, RoPE and losses AVX-512)")
    monkeypatch.setattr(cpu_kernels, "CPU_KERNELS", None)
    assert choose_kernels("cpu") == Kernels()


def test_a_library_that_is_asked_for_must_be_there(installed):
    installed(False, True)
    with pytest.raises(ConfigError, match=r"--transformer-impl transformer_engine .*not installed.*requirements/gpu"):
        choose_kernels("cuda", "transformer_engine")


def test_the_log_names_every_choice_and_what_is_missing(installed):
    installed(False, False)
    chosen = "attention torch, norms torch, Adam torch"
    assert (
        describe_kernels("cuda") == f"{chosen} (TransformerEngine, NVIDIA's Apex, Triton or a C compiler not installed)"
    )
    assert describe_kernels("cpu", "local") == chosen
    installed(True, True)
    assert (
        describe_kernels("cuda").removesuffix(" (Triton or a C compiler not installed)")
        == "attention TransformerEngine, norms Apex, Adam TransformerEngine"
    )


@pytest.mark.parametrize(
    ("found", "modules", "expected"),
    [
        ({"apex", "fused_layer_norm_cuda"}, NVIDIAS, True),
        ({"apex"}, NVIDIAS, False),  # Apex without its compiled parts
        ({"apex", "fused_layer_norm_cuda"}, {**NVIDIAS, "apex.optimizers": {}}, False),
        ({"apex", "fused_layer_norm_cuda"}, {}, False),  # the Pyramid add-on of that name
        (set(), {}, False),
    ],
)
def test_apex_is_known_by_its_parts(found, modules, expected, monkeypatch):
    def import_module(name: str) -> ModuleType:
        if name not in modules:
            raise ModuleNotFoundError(name)
        return SimpleNamespace(**modules[name])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr(kernels.importlib, "import_module", import_module)
    assert has_apex() is expected


def test_compiling_is_refused_where_nothing_translates_its_code(monkeypatch: pytest.MonkeyPatch):
    assert choose_kernels("cpu", "local", compiled=True) == Kernels(compiled=True)
    assert "torch.compile for RMSNorm" in describe_kernels("cpu", "local", compiled=True)
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler.*install g\+\+"):
        choose_kernels("cpu", "local", compiled=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="--compile needs Triton"):
        choose_kernels("cuda", "local", compiled=True)
