"""Takes one training step as each rank of `gpu_cases` on GPUs that are not there; writes what happened as JSON.

A process of its own: what `fake_cuda` changes, and what the CPU adapter changes in the tests' process, exclude each
other. Run as `python -m tests.unit.training.gpu_path_worker FILE`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_ext.config import RunConfig
from tests.unit.tiny import TokenView
from tests.unit.training.fake_cuda import Recorder, fake_cuda
from tests.unit.training.gpu_cases import CASES, LAYOUTS, VOCAB_SIZE, Case


def steps_of(run: RunConfig) -> int:
    """Where the reduction overlaps the second step differs: only then are gradients reduced as they come."""
    return 2 if run.parallel.overlap_grad_reduce else 1


def step_as(case: Case) -> dict[str, Any]:
    """Build and train as `case`; return what was reduced and sent in each step, and what lies on which device."""
    from megatron_ext.data.datasets import Datasets
    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform.cuda import CudaPlatform
    from megatron_ext.tokenizer.null import NullTokenizer
    from megatron_ext.training.components import build_components
    from megatron_ext.training.metrics import TrainState
    from megatron_ext.training.readers import open_readers
    from megatron_ext.training.step import train_step

    run = case.run()
    with (
        fake_cuda(case.rank, LAYOUTS[case.layout].world_size) as (recorder, started),
        start_world(run, CudaPlatform()) as world,
    ):
        view = TokenView()
        parts = build_components(run, world, NullTokenizer(VOCAB_SIZE - 1), Datasets(view, None, None))
        state, steps = TrainState(), []
        with open_readers(parts, view, 0, run.global_batch_size_at) as readers:
            for _ in range(steps_of(run)):
                recorder.collectives, recorder.host_reads = [], 0
                result = train_step(parts, state, readers)
                state.advance(result)
                steps.append(what_happened(recorder, result))
        return {
            "steps": steps,
            "operations": sorted(recorder.operations),
            "backend": started["backend"],
            "device_id": str(started["device_id"]),
            **held(parts),
        }


def what_happened(recorder: Recorder, result: Any) -> dict[str, Any]:
    """One step: its collectives, the host's reads, and whether its result is whole."""
    values = dataclasses.asdict(result)
    return {
        "collectives": [collective._asdict() for collective in recorder.collectives],
        "host_reads": recorder.host_reads,
        "finite": math.isfinite(values["lm_loss"]) and math.isfinite(values["grad_norm"]),
        "skipped": values["skipped"],
    }


def held(parts: Any) -> dict[str, Any]:
    """Parameters, gradients and optimizer state of this rank: elements, types, devices."""
    parameters = [parameter for model in parts.models for parameter in model.parameters()]
    state = [tensor for entry in parts.optimizer.optimizer.state.values() for tensor in entry.values()]
    buffers = [buffer for chunk in parts.chunks for buffer in chunk.buffers]
    return {
        "parameters": kinds(parameters),
        "gradients": kinds([parameter.main_grad for parameter in parameters]),
        "state": kinds([tensor for tensor in state if isinstance(tensor, torch.Tensor)]),
        "shapes_agree": all(parameter.main_grad.shape == parameter.shape for parameter in parameters),
        # per chunk and bucket: the elements with padding, and the parameters inside in the order of the backward pass
        "buckets": [
            [[bucket.grad_data.numel(), [p.numel() for p in bucket.params_list]] for bucket in buffer.buckets]
            for buffer in buffers
        ],
        "order": [[parameter.numel() for parameter in model.parameters()][::-1] for model in parts.models],
    }


def kinds(tensors: list[torch.Tensor]) -> dict[str, Any]:
    """Elements of all, and the types and devices that occur."""
    types = sorted({f"{str(tensor.dtype).removeprefix('torch.')} {tensor.device.type}" for tensor in tensors})
    return {"elements": sum(tensor.numel() for tensor in tensors), "types": types}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({case.name: step_as(case) for case in CASES}))
