"""What torch.compile makes is made once."""

from __future__ import annotations

import torch

from megatron_ext.platform.compiled import compiled


def one_more(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def test_a_function_is_compiled_once(monkeypatch):
    made: list[object] = []
    monkeypatch.setattr("torch.compile", lambda function: made.append(function) or (lambda x: function(x)))
    compiled.cache_clear()
    assert compiled(one_more) is compiled(one_more)
    assert made == [one_more] and compiled(one_more)(torch.zeros(1)).equal(torch.ones(1))
    compiled.cache_clear()
