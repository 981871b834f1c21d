"""Rates of plain matrix products: what a step could reach if it were nothing but the products of its own shapes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

REPEATS = 3


class Product(NamedTuple):
    """One product of a step, operands and result kept from call to call.

    Attributes:
        left, right, out: bf16 matrices.
        flops: operations of one call.
        count: how often a step has it.
    """

    left: Any
    right: Any
    out: Any
    flops: int
    count: int


def products_of(model: Any, vocab_rows: int, num_tokens: int, device: str) -> list[Product]:
    """Forward, input gradient and weight gradient of qkv, proj, fc1 (gate and up in one), fc2 and the output layer.

    With x `[t, k]`, weight `[n, k]` and output gradient `[t, n]`: x weight^T, gradient weight, gradient^T x, laid out
    as autograd lays them out. The products inside attention are not among them.

    Args:
        model: the architecture.
        vocab_rows: rows of the output layer.
        num_tokens: t.
        device: `cpu` or `cuda`.
    """
    import torch

    query, pair = model.heads * model.head_dim, 2 * model.query_groups * model.head_dim
    layer = [(model.hidden_size, query + pair), (query, model.hidden_size)]
    layer += [(model.hidden_size, model.ffn_size * (2 if model.swiglu else 1)), (model.ffn_size, model.hidden_size)]
    products = []
    for k, n, count in [(k, n, model.num_layers) for k, n in layer] + [(model.hidden_size, vocab_rows, 1)]:
        x, weight, gradient = (
            torch.randn(size, device=device).bfloat16() for size in ((num_tokens, k), (n, k), (num_tokens, n))
        )
        flops = 2 * num_tokens * k * n
        for left, right in ((x, weight.t()), (gradient, weight), (gradient.t(), x)):
            products.append(Product(left, right, torch.mm(left, right), flops, count))
    return products


def rate_of(products: list[Product]) -> float:
    """10^9 operations per second over all products, each as often as a step has it.

    Each runs a few times in a row, its operands in the cache as far as they fit: better than in the step.
    """
    import torch

    wait = torch.cuda.synchronize if products[0].out.is_cuda else lambda: None
    seconds = 0.0
    for product in products:
        wait()
        started = time.perf_counter()
        for _ in range(REPEATS):
            torch.mm(product.left, product.right, out=product.out)
        wait()
        seconds += product.count * (time.perf_counter() - started) / REPEATS
    return sum(product.flops * product.count for product in products) / seconds / 1e9


def square(size: int, dtype: str, device: str) -> list[Product]:
    """One large product: the peak that this machine's library reaches."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return [Product(left, right, torch.mm(left, right), 2 * size**3, 1)]
