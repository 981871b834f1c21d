"""What each replaced name must do on a CPU, one case a name; run as a script, the names that do it unadapted.

A case returns True when the name has its meaning; it may also raise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

CPU = torch.device("cpu")


def on_cpu(make: Callable[[], torch.Tensor]) -> Callable[[], bool]:
    return lambda: make().device == CPU


def everywhere(make: Callable[..., torch.Tensor]) -> Callable[[], bool]:
    """Every spelling of the device, and the untouched CPU."""
    devices = ("cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0), "cpu", None)
    return lambda: all(make(device=device).device == CPU for device in devices)


def does_nothing(function: Callable[[], Callable[..., Any]], *arguments: object) -> Callable[[], bool]:
    return lambda: function()(*arguments) is None


def to_reads_cuda_as_cpu() -> bool:
    x = torch.ones(2)
    spellings = [
        x.to("cuda"), x.to("cuda:0"), x.to(torch.device("cuda")), x.to(device="cuda"), x.to("cuda", torch.float64),
        x.to(device=torch.device("cuda", 0), dtype=torch.float64), x.to(torch.device("cuda"), non_blocking=True),
    ]  # fmt: skip
    converted = [x.to(torch.float64), x.to(torch.ones(1, dtype=torch.float64)), spellings[4], spellings[5]]
    return all(y.device == CPU for y in spellings) and all(y.dtype == torch.float64 for y in converted)


def type_answers_with_cuda_names() -> bool:
    names = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}
    answers = all(torch.ones(1, dtype=dtype).type() == f"torch.cuda.{name}Tensor" for dtype, name in names.items())
    return (
        answers and torch.ones(1).type(torch.int64).dtype == torch.int64 and torch.ones(1).long().type()[:5] == "torch"
    )


def module_stays() -> bool:
    module = torch.nn.Linear(2, 2)
    return module.cuda() is module and module.weight.device == CPU


def tensor_stays() -> bool:
    x = torch.ones(1)
    return x.cuda() is x and x.cuda(0) is x and x.cuda(non_blocking=True) is x


def streams_are_idle() -> bool:
    stream = torch.cuda.Stream()
    other = torch.cuda.Stream(device="cuda", priority=1)
    stream.wait_stream(other)
    stream.wait_event(other.record_event())
    stream.synchronize()
    event = torch.cuda.Event()
    return stream.record_event(event) is event and stream.device == CPU


def events_have_happened() -> bool:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.wait()
    event.synchronize()
    return event.query()


def work_runs_inside_a_stream() -> bool:
    with torch.cuda.stream(torch.cuda.Stream()):
        result = torch.ones(1) + 1
    with torch.cuda.stream(None):
        return result.item() == 2


def seeds_the_cpu_generator() -> bool:
    torch.cuda.manual_seed(7)
    return torch.rand(3).equal(torch.rand(3, generator=torch.Generator().manual_seed(7)))


def restores_the_cpu_generator(get: Callable[[], torch.Tensor], put: Callable[[torch.Tensor], None]) -> bool:
    state = get()
    first = torch.rand(3)
    put(state)
    return state.equal(torch.Generator().set_state(state).get_state()) and torch.rand(3).equal(first)


def megatron_random() -> Any:
    import megatron.core.tensor_parallel.random as random

    return random


def cuda_random_state() -> bool:
    return restores_the_cpu_generator(torch.cuda.get_rng_state, lambda state: torch.set_rng_state(state)) and (
        torch.cuda.get_rng_state("cuda").equal(torch.get_rng_state())
    )


def cuda_random_state_is_set() -> bool:
    return restores_the_cpu_generator(torch.get_rng_state, lambda state: torch.cuda.set_rng_state(state, "cuda"))


def megatron_random_state() -> bool:
    get = megatron_random()._get_cuda_rng_state
    return restores_the_cpu_generator(lambda: get(graph_safe=False), lambda state: torch.set_rng_state(state))


def megatron_random_state_is_set() -> bool:
    put = megatron_random()._set_cuda_rng_state
    return restores_the_cpu_generator(torch.get_rng_state, lambda state: put(state, graph_safe=False))


CASES: dict[str, Callable[[], bool]] = {
    "torch.empty": everywhere(lambda device: torch.empty(2, device=device)),
    "torch.zeros": everywhere(lambda device: torch.zeros(2, 3, device=device, dtype=torch.bfloat16)),
    "torch.ones": everywhere(lambda device: torch.ones((2, 3), device=device)),
    "torch.full": everywhere(lambda device: torch.full((2,), 3.0, device=device)),
    "torch.tensor": everywhere(lambda device: torch.tensor([1, 2], device=device)),
    "torch.arange": everywhere(lambda device: torch.arange(2, 5, device=device)),
    "torch.rand": everywhere(lambda device: torch.rand(2, device=device)),
    "torch.randn": everywhere(lambda device: torch.randn(2, device=device)),
    "torch.empty_like": everywhere(lambda device: torch.empty_like(torch.ones(2), device=device)),
    "torch.zeros_like": everywhere(lambda device: torch.zeros_like(torch.ones(2), device=device)),
    "torch.eye": everywhere(lambda device: torch.eye(2, device=device)),
    "Tensor.cuda": tensor_stays,
    "Tensor.to": to_reads_cuda_as_cpu,
    "Tensor.type": type_answers_with_cuda_names,
    "Module.cuda": module_stays,
    "torch.cuda.current_device": lambda: torch.ones(1, device=torch.cuda.current_device()).device == CPU,
    "torch.cuda.set_device": does_nothing(lambda: torch.cuda.set_device, 0),
    "torch.cuda.synchronize": does_nothing(lambda: torch.cuda.synchronize),
    "torch.cuda.empty_cache": does_nothing(lambda: torch.cuda.empty_cache),
    "torch.cuda.Stream": streams_are_idle,
    "torch.cuda.Event": events_have_happened,
    "torch.cuda.current_stream": lambda: torch.cuda.current_stream().wait_stream(torch.cuda.current_stream(0)) is None,
    "torch.cuda.default_stream": lambda: torch.cuda.default_stream().synchronize() is None,
    "torch.cuda.stream": work_runs_inside_a_stream,
    "torch.cuda.nvtx.range_push": does_nothing(lambda: torch.cuda.nvtx.range_push, "name"),
    "torch.cuda.nvtx.range_pop": does_nothing(lambda: torch.cuda.nvtx.range_pop),
    "torch.cuda.manual_seed": seeds_the_cpu_generator,
    "torch.cuda.get_rng_state": cuda_random_state,
    "torch.cuda.set_rng_state": cuda_random_state_is_set,
    "megatron.core.tensor_parallel.random._get_cuda_rng_state": megatron_random_state,
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": megatron_random_state_is_set,
}


def holds(name: str) -> bool:
    """Whether a case holds here; an error counts as no."""
    with contextlib.suppress(Exception):
        return CASES[name]()
    return False


if __name__ == "__main__":
    print(" ".join(name for name in CASES if holds(name)))
