"""Loading: find the newest checkpoint, verify every byte, refuse another model, then let every rank take its slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

from megatron_ext import log
from megatron_ext.checkpoint.manifest import faults_of_files, files_of, read_manifest
from megatron_ext.checkpoint.names import read_tracker, saved_folder, saved_iterations
from megatron_ext.checkpoint.optimizer_state import load_optimizer_state, set_optimizer_step, set_scaler_state
from megatron_ext.checkpoint.record import CheckpointRecord, read_record
from megatron_ext.checkpoint.save import model_tensors, training_tensors
from megatron_ext.checkpoint.storage import load_tensors
from megatron_ext.checkpoint.trained_parts import refuse_other_trained_parameters
from megatron_ext.config import CheckpointConfig, RunConfig
from megatron_ext.errors import CheckpointError

SHAPE_SETTINGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "normalization",
    "layernorm_epsilon",
    "swiglu",
    "untie_embeddings_and_output_weights",
    "norm_head",
    "add_output_layer_bias",
    "embedding_multiplier",
    "logits_multiplier",
    "add_bias_linear",
    "add_qkv_bias",
    "add_attention_output_bias",
    "add_mlp_up_bias",
    "add_mlp_down_bias",
    "embedding_layernorm",
    "parallel_residual",
    "localized_filtering",
    "rotary_interleaved",
    "openai_gelu",
    "rope_scaling",
)
"""Settings that make another model of the same tensors, besides the derived sizes compared below."""


def find_checkpoint(config: CheckpointConfig) -> Path | None:
    """Return the folder of the checkpoint to load, verified on all ranks together; None when `--load` holds none.

    The newest by the tracker, or `--ckpt-step`. A damaged newest one is an error that names the damage, unless
    `--allow-older-checkpoint` says to take the newest good one. Collective over all ranks.

    Raises:
        CheckpointError: see above; or nothing is there with `--exit-on-missing-checkpoint` or `--ckpt-step`.
    """
    root = Path(config.load or "")
    candidates = _candidates(root, config)
    if not candidates:
        if config.exit_on_missing_checkpoint or config.ckpt_step is not None:
            raise CheckpointError(f"--load {root} holds no checkpoint", "and a checkpoint was asked for")
        return None
    for position, iteration in enumerate(candidates):
        folder = saved_folder(root, iteration)
        faults = verify_together(folder)
        if not faults:
            return folder
        damage = f"checkpoint {folder} is damaged: " + "; ".join(faults[:5])
        if not config.allow_older_checkpoint or position + 1 == len(candidates):
            older = [i for i in saved_iterations(root) if i < iteration]
            raise CheckpointError(
                damage,
                fix=f"older checkpoints: {older or 'none'}; take one with --allow-older-checkpoint or --ckpt-step",
            )
        log.warn(f"{damage}; trying the one before (--allow-older-checkpoint)")
    return None


def verify_together(folder: Path) -> list[str]:
    """Compare every file of a checkpoint with its manifest, each rank a share; the faults, the same on every rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        mine = [str(error)]
    else:
        mine = faults_of_files(folder, files, sorted(files)[rank::world_size])
        mine += [f"{name} is not in the manifest" for name in files_of(folder) if name not in files]
    shares: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(shares, mine)
    return list(dict.fromkeys(fault for share in shares for fault in share))


def load_checkpoint(
    folder: Path, run: RunConfig, vocab_size: int, models: Sequence[MegatronModule], optimizer: MegatronOptimizer | None
) -> CheckpointRecord:
    """Fill the model and, unless None, the optimizer from a verified checkpoint. Collective over all ranks.

    The layout may be another one than at the save: every rank reads the slices it needs.

    Raises:
        CheckpointError: it is of another model, or lacks the optimizer state that is asked for.
    """
    record = read_record(folder)
    refuse_other_model(folder, record, run, vocab_size)
    if optimizer is not None:
        refuse_other_optimizer(folder, record, run)
        refuse_other_trained_parameters(folder, record.run.optim, run.optim, models)
    tensors = load_tensors(training_tensors(models, optimizer, is_loading=True), folder)
    for index, model in enumerate(models):
        # a pipeline chunk may hold nothing
        model.load_state_dict(tensors.get(f"model{index}", {}))
    if optimizer is not None:
        # a stage that trains nothing has no optimizer tensors
        load_optimizer_state(optimizer, model_tensors(models), tensors.get("optimizer", {}))
        set_optimizer_step(optimizer, record.optimizer_step or 0)
        set_scaler_state(optimizer, record.loss_scaler)
    return record


def refuse_other_model(folder: Path, record: CheckpointRecord, run: RunConfig, vocab_size: int) -> None:
    """Raise a CheckpointError that names every setting in which the checkpoint's model differs from the run's."""
    saved, wanted = record.run.model, run.model
    # a long-context stage begins with other frequencies of the same positions
    free = {"rotary_base", "rope_scaling"} if run.checkpoint.finetune else set()
    pairs = [(name, getattr(saved, name), getattr(wanted, name)) for name in SHAPE_SETTINGS if name not in free]
    pairs += [(name, getattr(saved, name), getattr(wanted, name)) for name in ("ffn_size", "query_groups", "head_dim")]
    if saved.position_embedding_type == wanted.position_embedding_type == "learned_absolute":
        pairs.append(("max_position_embeddings", record.run.max_position_embeddings, run.max_position_embeddings))
    pairs.append(("vocabulary", record.vocab_size, vocab_size))
    differing = [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]
    if differing:
        raise CheckpointError(
            f"checkpoint {folder} holds another model: {'; '.join(differing)}",
            fix="give the model settings it was trained with, or another --load",
        )


def refuse_other_optimizer(folder: Path, record: CheckpointRecord, run: RunConfig) -> None:
    """Raise a CheckpointError unless the optimizer state of the checkpoint continues as the run's.

    From half precision to fp32, the weights would silently come from their rounded copies.
    """
    if record.optimizer_step is None:
        raise CheckpointError(
            f"{folder} was saved without optimizer state",
            fix="start from its weights with --finetune, or add --no-load-optim",
        )
    pairs = [(_precision(record.run), _precision(run)), (record.run.optim.optimizer, run.optim.optimizer)]
    differing = [f"{there} there, {here} here" for there, here in pairs if there != here]
    if differing:
        raise CheckpointError(
            f"{folder} has the optimizer state of another precision or optimizer: {'; '.join(differing)}",
            fix="resume with the flags it was saved with, or take its weights alone with --finetune or --no-load-optim",
        )


def _precision(run: RunConfig) -> str:
    return "--bf16" if run.train.bf16 else "--fp16" if run.train.fp16 else "fp32"


def _candidates(root: Path, config: CheckpointConfig) -> list[int]:
    """Iterations to try, in order; the same on every rank."""
    saved = saved_iterations(root)
    if config.ckpt_step is not None:
        if config.ckpt_step not in saved:
            raise CheckpointError(f"--ckpt-step {config.ckpt_step} is not in {root}", f"it holds {saved or 'none'}")
        return [config.ckpt_step]
    newest = read_tracker(root)
    if newest is None:
        # a kill between the first rename and the tracker: the folder is whole, the tracker not yet there
        return saved[::-1]
    return [newest, *(i for i in saved[::-1] if i < newest)]
