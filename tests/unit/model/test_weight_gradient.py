"""Weights' gradients that are added by the product that computes them: to what is there, also through megatron-core."""

from __future__ import annotations

import pytest
import torch
from megatron.core.tensor_parallel import layers

from megatron_ext.model.weight_gradient import add_product, add_weight_gradients_in_products


def test_a_product_is_added_to_what_is_there():
    total, left, right = torch.ones(2, 3), torch.randn(2, 5), torch.randn(5, 3)
    add_product(total, left, right)
    torch.testing.assert_close(total, 1 + left @ right)


def test_megatron_core_finds_it_where_apexs_extension_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    add_weight_gradients_in_products()
    assert layers._grad_accum_fusion_available
    inputs, of_outputs, main_grad = torch.randn(5, 3), torch.randn(5, 2), torch.ones(2, 3)
    layers.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs, of_outputs, main_grad)
    torch.testing.assert_close(main_grad, 1 + of_outputs.T @ inputs)


def test_apexs_extension_stays(monkeypatch: pytest.MonkeyPatch):
    apexs = object()
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", apexs, raising=False)
    add_weight_gradients_in_products()
    assert layers.fused_weight_gradient_mlp_cuda is apexs
