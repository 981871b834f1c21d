"""Where a run starts, and what a checkpoint of it holds."""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict
from pathlib import Path

import megatron_ext
from megatron_ext import log
from megatron_ext.checkpoint.load import find_checkpoint, load_checkpoint
from megatron_ext.checkpoint.optimizer_state import optimizer_step, scaler_state
from megatron_ext.checkpoint.record import CheckpointRecord
from megatron_ext.checkpoint.save import Retention, save_checkpoint, training_tensors
from megatron_ext.checkpoint.trained_parts import refuse_other_multipliers
from megatron_ext.data.views import View
from megatron_ext.errors import CheckpointError
from megatron_ext.training.blend_policy import apply_decisions
from megatron_ext.training.components import Components, gathered_parameters
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.schedule import Schedule, reconcile, schedule_settings
from megatron_ext.training.source_losses import SourceProgress, SourceTotals


def start_state(parts: Components) -> TrainState:
    """Return the state to start from: that of the checkpoint in `--load`, or the beginning. Collective over all ranks.

    Loads weights, optimizer and schedule into `parts`. With `--finetune` only the weights are taken.
    """
    checkpoint = parts.run.checkpoint
    folder = find_checkpoint(checkpoint) if checkpoint.load else None
    if folder is None:
        if checkpoint.load:
            log.warn(f"--load {checkpoint.load} holds no checkpoint: starting from the beginning")
        return TrainState()
    wants_optimizer = not (checkpoint.finetune or checkpoint.no_load_optim)
    optimizer = parts.optimizer if wants_optimizer else None
    record = load_checkpoint(folder, parts.run, parts.tokenizer.vocab_size, parts.models, optimizer)
    if optimizer is None:
        parts.optimizer.reload_model_params()
    if checkpoint.finetune:
        log.info(f"loaded the weights of {folder}; starting at iteration 0 (--finetune)")
        return TrainState()
    sources = _resumed_sources(folder, record, parts)
    settings = reconcile(
        record.schedule or None,
        schedule_settings(parts.run),
        checkpoint.override_opt_param_scheduler,
        checkpoint.use_checkpoint_opt_param_scheduler,
    )
    parts.schedule = Schedule.from_settings(settings)
    if record.schedule and not checkpoint.override_opt_param_scheduler:  # an imported model has neither
        refuse_other_multipliers(folder, record.run.optim, parts.run.optim, parts.models)
    state = TrainState.from_dict(record.state)
    state.sources = sources
    log.info(f"loaded {folder}: iteration {state.iteration}, {state.consumed_samples} samples consumed")
    return state


def save_state(parts: Components, state: TrainState) -> None:
    """Write a checkpoint of the run as it stands into `--save`. Collective over all ranks."""
    run = parts.run
    keeps_optimizer = not run.checkpoint.no_save_optim
    started = time.perf_counter()
    record = CheckpointRecord(
        run=run,
        vocab_size=parts.tokenizer.vocab_size,
        state=state.to_dict(),
        schedule=asdict(parts.schedule),
        optimizer_step=optimizer_step(parts.optimizer) if keeps_optimizer else None,
        loss_scaler=scaler_state(parts.optimizer) if keeps_optimizer else None,
        data=describe_order(parts.datasets.train, state.consumed_samples),
        sources=state.sources.to_record() if state.sources else {},
        tokenizer_files=[file.name for file in parts.tokenizer.files],
        provenance={"software": f"megatron_ext {megatron_ext.__version__}"},
    )
    retention = Retention(run.checkpoint.keep_last, run.checkpoint.save_retain_interval)
    with gathered_parameters(parts):
        tensors = training_tensors(parts.models, parts.optimizer if keeps_optimizer else None, is_loading=False)
        folder = save_checkpoint(Path(run.checkpoint.save or ""), tensors, record, parts.tokenizer.files, retention)
    log.info(f"saved {folder} in {time.perf_counter() - started:.1f} s")


def describe_order(view: View | None, consumed_samples: int) -> dict[str, int]:
    """Return numbers that tell one stream of training samples from another.

    Its sizes, its datasets, its first ids and tokens, and the last ids that the run has consumed: they are the same
    only if every dataset of a blend was drawn as often until there. What is still to come may be planned anew.
    """
    if view is None:
        return {}
    ids = view.sample_ids(0, 256)
    tokens = b"".join(view[int(sample)].tobytes() for sample in ids[:4])
    last = view.sample_ids(max(0, consumed_samples - 256), min(256, consumed_samples))
    return {
        "tokens": view.num_tokens,
        "samples in one epoch": len(view),
        "sequence length": view.seq_length,
        "checksum of the datasets": zlib.crc32(" ".join(store.identity for store in view.stores).encode()),
        "checksum of the order": zlib.crc32(ids.tobytes()),
        "checksum of the last samples": zlib.crc32(last.tobytes()),
        "checksum of the first samples": zlib.crc32(tokens),
    }


def _resumed_sources(folder: Path, record: CheckpointRecord, parts: Components) -> SourceProgress | None:
    """What the run keeps of its sources; the weights it decided on hold again, before anything is read.

    Raises:
        CheckpointError: the data has another order, or the checkpoint's numbers are not for its datasets.
    """
    try:
        sources = SourceProgress.from_record(record.sources) if record.sources else None
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    if sources is not None and sources.decisions and parts.run.data.blend_schedule:
        raise CheckpointError(
            f"checkpoint {folder} has weights that were decided by the losses, and --blend-schedule gives other ones",
            "what was drawn stays drawn, so a schedule cannot begin in the middle of such a run",
            "leave out --blend-schedule, or start over from the weights of the model with --finetune",
        )
    fits = sources is None or len(sources.since_report) == parts.num_sources
    fits = fits and apply_decisions(parts.datasets.train, sources.decisions if sources else [])
    _refuse_other_data(folder, record, parts)
    if not fits:
        raise CheckpointError(
            f"checkpoint {folder} was trained on a blend of other datasets",
            "a resume continues the same samples",
            "give the data flags of the first start, or start over from its weights with --finetune",
        )
    if sources is not None and record.run.data.blend_reweight_interval is None:
        sources.since_decision = SourceTotals.zeros(parts.num_sources)  # a policy that begins now looks from here on
    return sources


def _refuse_other_data(folder: Path, record: CheckpointRecord, parts: Components) -> None:
    """A resume must continue the same order of the same samples (law L3)."""
    current = describe_order(parts.datasets.train, record.state["consumed_samples"])
    differing = [name for name in current if name in record.data and record.data[name] != current[name]]
    if differing:
        values = "; ".join(f"{name}: {record.data[name]} there, {current[name]} here" for name in differing)
        raise CheckpointError(
            f"checkpoint {folder} was trained on another data order: {values}",
            "a resume continues the same samples",
            "give the data flags of the first start, or start over from its weights with --finetune",
        )
