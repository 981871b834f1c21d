"""Trains every case of a file in this world and writes losses, gradients, initial and final weights."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np

from megatron_ext.parallel.world import start_world, stop_model_parallel
from megatron_ext.platform import select_platform
from megatron_ext.training.components import Components
from megatron_ext.training.evaluate import evaluate
from megatron_ext.training.metrics import TrainState
from tests.distributed.tiny import tiny_run
from tests.distributed.training import gathered_state, started, train_steps
from tests.group_threads import assert_groups_are_gone, group_threads


def main(cases_file: str, out: str, processes: str) -> None:
    """Run the cases one after another; rank 0 writes OUT/NAME.npz each."""
    cases = json.loads(Path(cases_file).read_text(encoding="utf-8"))
    first = tiny_run(cases[0]["model"], cases[0]["flags"], int(processes), Path(cases[0]["data"]))
    # CUDA's queues are chosen once, for cases with and without tensor parallelism
    platform = select_platform(first.parallel.device, tensor_ranks=int(processes))
    with start_world(first, platform) as world:
        # the layouts of the cases take the place of the one that the world was started with
        stop_model_parallel()
        gc.freeze()  # what is imported stays; collections need not look at it
        connected = group_threads()
        for case in cases:
            result = run_case(case, int(processes))
            assert_groups_are_gone(connected)  # forgotten ones slow later cases
            if world.rank == 0:
                np.savez(Path(out) / f"{case['name']}.npz", **result)


def run_case(case: dict, processes: int) -> dict[str, np.ndarray]:
    """Train one case and return everything the laws are about."""
    run = tiny_run(case["model"], case["flags"], processes, Path(case["data"]))
    with started(run) as parts:
        built = tuple(len(model.decoder.layers) for model in parts.models)
        assert built == run.layers_per_chunk[parts.world.at.pp_rank], f"{case['name']}: chunks of {built} layers"
        start = gathered_state(parts)
        state = TrainState()
        results = train_steps(parts, state, 1)
        gradients = first_gradients(parts)
        results += train_steps(parts, state, case["steps"] - 1)
        validation = evaluate(parts)
        end = gathered_state(parts, case.get("with_optimizer", False))
    return {
        "losses": np.array([result.lm_loss for result in results]),
        "grad_norms": np.array([result.grad_norm for result in results]),
        "validation": np.array(validation),
        **{f"start/{name}": value for name, value in start.items()},
        **{f"gradient/{name}": value for name, value in gradients.items()},
        **{f"end/{name}": value for name, value in end.items()},
    }


def first_gradients(parts: Components) -> dict[str, np.ndarray]:
    """Return the gradient of every parameter, whole and clipped, as Adam's first moment holds it after one step."""
    prefix, beta1 = "optimizer.state.exp_avg.", parts.run.optim.adam_beta1
    state = gathered_state(parts, with_optimizer=True)
    return {name.removeprefix(prefix): value / (1 - beta1) for name, value in state.items() if name.startswith(prefix)}
