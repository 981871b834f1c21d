"""Law L2 inside two processes: stop at every step of a run and resume; resume under another layout.

Exits with an AssertionError that names the step and the value at the first difference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.distributed as dist

from megatron_ext.checkpoint.names import checkpoint_folder
from megatron_ext.parallel.world import start_world, stop_model_parallel
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.resume import save_state, start_state
from tests.distributed.tiny import OVERLAP, UNEVEN, tiny_run
from tests.distributed.training import State, gathered_state, started, train_steps

STEPS = 20
DROPOUT = "--hidden-dropout 0.1 --attention-dropout 0.1"
TP2 = "--tensor-model-parallel-size 2"
PP2 = "--pipeline-model-parallel-size 2"
SAME_LAYOUT = {
    "tp2 sp, fp32, dropout": ("rope", f"{TP2} --sequence-parallel {DROPOUT}"),
    "dp2 distopt overlap, bf16, dropout": (
        "alibi",
        f"--bf16 --use-distributed-optimizer {OVERLAP} {DROPOUT}",
    ),
    "pp2 vpp2, fp16, tied, lengths that rise": (
        "gpt2",
        f"--fp16 --initial-loss-scale 65536 --loss-scale-window 4 {PP2} --num-virtual-stages-per-pipeline-rank 2 "
        "--micro-batch-size 1 --seq-length-warmup 8:700 16:700",
    ),
}
RELAYOUT = {
    "tp2 sp": f"{TP2} --sequence-parallel",
    "pp2 vpp2": f"{PP2} --num-virtual-stages-per-pipeline-rank 2 --micro-batch-size 1",
    "dp2": "",
    "dp2 distopt": "--use-distributed-optimizer --micro-batch-size 1",
}


def some(*names: str) -> dict[str, str]:
    """A few of `RELAYOUT`, for what the layouts that are left out treat alike."""
    return {name: RELAYOUT[name] for name in names}


OTHER_LAYOUT: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "fp32": (2, "rope", "", RELAYOUT),
    "bf16, grouped queries": (2, "gqa", "--bf16", RELAYOUT),
    "tied": (2, "gpt2", "", RELAYOUT),
    "lion": (2, "gpt2", "--optimizer lion --adam-beta2 0.999 --lr 2e-4 --min-lr 0", some("tp2 sp", "dp2 distopt")),
    "muon": (2, "gqa", "--bf16 --optimizer muon", some("tp2 sp", "pp2 vpp2")),
    "the first stage trains nothing": (
        2,
        "rope",
        "--bf16 --train-only output_layer.*",
        some("pp2 vpp2", "dp2 distopt"),
    ),
    "stages of other numbers of layers": (
        2,
        "gpt2",
        "",
        {name: UNEVEN[2][name] for name in ("pp2 1+3", "pp2 vpp3 counted", "pp2 vpp2 layout")},
    ),
    "ranks that share a key and value head": (2, "one_group", "--bf16", some("tp2 sp", "dp2 distopt")),
    # they hold the same weights, and shard the optimizer's state together
    "ranks that share sequences": (
        2,
        "gqa",
        "--bf16 --reset-attention-mask",
        {"cp2 distopt": "--context-parallel-size 2 --use-distributed-optimizer", **some("dp2")},
    ),
    "instances of the optimizer": (
        4,
        "gpt2",
        "--bf16",
        {
            "dp4 distopt overlap, 2 instances": "--num-distributed-optimizer-instances 2 --use-distributed-optimizer "
            f"{OVERLAP} --micro-batch-size 1",
            "tp2 dp2 distopt": f"{TP2} --use-distributed-optimizer",
        },
    ),
}
"""Name -> processes, model, flags, layouts: each is saved, and loaded by each."""


def main(name: str, data: str, out: str, processes: str) -> None:
    """Run one case of `SAME_LAYOUT` or of `OTHER_LAYOUT`."""
    with start_world(tiny_run("rope", "--micro-batch-size 1", int(processes), Path(data)), CpuPlatform()):
        stop_model_parallel()
        lengths = f"--data-path {data} --train-iters {STEPS}"
        if name in SAME_LAYOUT:
            model, flags = SAME_LAYOUT[name]
            every_step(name, model, f"{flags} {lengths}", Path(out))
        else:
            _, model, flags, layouts = OTHER_LAYOUT[name]
            every_pair(model, f"{flags} {lengths}", Path(out), layouts)


def every_step(name: str, model: str, flags: str, out: Path) -> None:
    """Train STEPS steps, saving before each. Resume from each save: one step leads bit for bit to the next state.

    By induction the resumed run then equals the uninterrupted one to its end; for three saves the end is looked at.
    """
    root = out / name.replace(" ", "_")
    run = tiny_run(model, f"{flags} --save {root}", 2, out)
    with started(run) as parts:
        state = TrainState()
        straight: list[StepResult] = []
        states = [gathered_state(parts, with_optimizer=True)]
        for _ in range(STEPS):
            save_state(parts, state)
            straight += train_steps(parts, state, 1)
            states.append(gathered_state(parts, with_optimizer=True))
    for step in range(STEPS):
        with started(tiny_run(model, f"{flags} --load {root} --ckpt-step {step}", 2, out)) as parts:
            state = start_state(parts)
            assert state.iteration == step
            resumed = train_steps(parts, state, STEPS - step if step in (0, 7, 13) else 1)
            for number, (one, other) in enumerate(zip(straight[step:], resumed, strict=False), step):
                assert numbers(one) == numbers(other), f"{name}: resumed at {step}, step {number}: {one} {other}"
            same_state(f"{name}, resumed at {step}", states[state.iteration], gathered_state(parts, True))


def every_pair(model: str, flags: str, out: Path, layouts: dict[str, str]) -> None:
    """Save under each layout, load under each other one: the full state is bit-equal, the same samples follow."""
    processes = dist.get_world_size()
    for saved_under, saving in layouts.items():
        root = out / f"{model}_{saved_under.replace(' ', '_')}"
        with started(tiny_run(model, f"{flags} {saving} --save {root}", processes, out)) as parts:
            state = TrainState()
            train_steps(parts, state, 3)
            save_state(parts, state)
            before = gathered_state(parts, with_optimizer=True)
            expected = train_steps(parts, state, 2)
        assert checkpoint_folder(root, 3).is_dir()
        for loaded_under, loading in layouts.items():
            what = f"{model}: saved under {saved_under}, loaded under {loaded_under}"
            with started(tiny_run(model, f"{flags} {loading} --load {root}", processes, out)) as parts:
                state = start_state(parts)
                same_state(what, before, gathered_state(parts, with_optimizer=True))
                follow(what, parts, state, expected, is_same=saving == loading)


def follow(what: str, parts: Components, state: TrainState, expected: list[StepResult], is_same: bool) -> None:
    """The loss of the next steps is that of the uninterrupted run, as far as another order of sums allows."""
    tolerance = 0.0 if is_same else 2e-3 if parts.run.train.bf16 else 1e-5
    for one, other in zip(expected, train_steps(parts, state, len(expected)), strict=True):
        assert np.isclose(one.lm_loss, other.lm_loss, rtol=tolerance), f"{what}: loss {one.lm_loss} {other.lm_loss}"
        assert one.learning_rate == other.learning_rate, what


def numbers(result: StepResult) -> tuple:
    """All of a step's numbers but its time."""
    return (result.lm_loss, result.grad_norm, result.learning_rate, result.loss_scale, result.skipped)


def same_state(what: str, one: State, other: State) -> None:
    """Weights and optimizer state, bit for bit."""
    assert set(one) == set(other), f"{what}: {set(one) ^ set(other)}"
    different = [name for name in one if not np.array_equal(one[name], other[name])]
    assert not different, f"{what}: {different} on rank {dist.get_rank()}"
