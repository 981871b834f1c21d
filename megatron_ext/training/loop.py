"""The training run as a table of contents."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from megatron_ext import log
from megatron_ext.atomic import replace_text
from megatron_ext.config import Resolved, RunConfig, check_rules, run_config_to_dict
from megatron_ext.data.datasets import DatasetRequest, Datasets, build_datasets
from megatron_ext.errors import ConfigError, TrainingError
from megatron_ext.model.counts import padded_vocab_size, parameter_counts
from megatron_ext.parallel.world import start_world
from megatron_ext.platform import local_processes, select_platform
from megatron_ext.platform.kernels import describe_kernels
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.build import build_tokenizer
from megatron_ext.training.batch_size import total_samples
from megatron_ext.training.blend_policy import Reweighting, check_policy
from megatron_ext.training.components import Components, build_components
from megatron_ext.training.evaluate import evaluate
from megatron_ext.training.hooks import Hook, HookParts, Outputs, StepContext, build_hooks
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.profile import profile_folder
from megatron_ext.training.readers import open_readers
from megatron_ext.training.resume import save_state, start_state
from megatron_ext.training.sample_ids import StepSamples
from megatron_ext.training.step import train_step
from megatron_ext.training.stop import StopConditions, StopReason, StopSignals


def pretrain(resolved: Resolved, started_at: float) -> None:
    """Train as the configuration says; every rank of a torchrun job calls it with the same one.

    All mistakes in files and data are found before the first process group starts.

    Args:
        resolved: settings that pass the rules.
        started_at: `time.monotonic()` at the start of the program, from which `--exit-duration-in-mins` counts.

    Raises:
        MegatronExtError: a mistake of the user's, the same on every rank.
    """
    run = resolved.run.with_values(global_batch_size=resolved.run.global_batch_size)
    platform = select_platform(run.parallel.device, run.parallel.tensor_model_parallel_size, local_processes())
    run = run.with_values(device=platform.name)
    check_rules(run)  # again: only now is it known what `--device auto` means
    tokenizer = build_tokenizer(run.data.tokenizer_type, run.data.tokenizer_model, run.model.vocab_size)
    datasets = build_datasets(dataset_request(run, tokenizer))
    check_policy(run.data, datasets.train)
    with StopSignals(run.train.exit_signal_handler) as signals, start_world(run, platform) as world:
        parts = build_components(run, world, tokenizer, datasets)
        introduce(parts, platform.name)
        state = start_state(parts)
        train(parts, state, StopConditions(run, state.iteration, started_at, signals))


def train(parts: Components, state: TrainState, conditions: StopConditions) -> None:
    """Run the loop from `state` until there is a reason to stop, then evaluate and save. Collective over all ranks.

    Raises:
        TrainingError: too many updates in a row were skipped; nothing was saved after the last of them.
    """
    run = parts.run
    save = SaveOnce(parts) if run.checkpoint.save else None
    samples = StepSamples(run.parallel.deterministic_data_parallel) if run.logging.log_sample_ids else None
    hook_parts = HookParts(
        run=run,
        start=state,
        vocab_rows=padded_vocab_size(run, parts.tokenizer.vocab_size),
        is_logging_rank=parts.world.is_logging_rank,
        evaluate=(lambda _: evaluate(parts)) if run.train.eval_iters and parts.datasets.valid is not None else None,
        save=save,
        sample_ids=samples.gathered if samples else None,
        sources=parts.datasets.train.source_names,
        reweight=Reweighting(parts) if run.data.blend_reweight_interval else None,
        profile=parts.profile,
    )
    with closing(Outputs(hook_parts)) as outputs:
        reason = StopReason.COMPLETE
        if not run.train.skip_train:
            with closing(parts.profile):
                reason = run_steps(parts, state, conditions, build_hooks(hook_parts, outputs), samples)
            if save is not None and reason.saves:
                save(state)
        if reason is StopReason.COMPLETE:
            final_evaluation(parts, state, outputs)
    log.info(f"stopped after iteration {state.iteration}: {reason.describe()}")
    if reason is StopReason.SKIPPED_UPDATES:
        raise TrainingError(
            f"the last {state.skipped_in_a_row} updates were skipped, up to iteration {state.iteration}",
            f"--max-skipped-iterations is {run.train.max_skipped_iterations}; warnings above tell loss and gradient "
            "norm of each iteration that was no number; no checkpoint was written at the end",
            "resume from the last checkpoint, with a lower --lr and --override-opt_param-scheduler, or without the "
            "ranks that are named above",
        )


def run_steps(
    parts: Components,
    state: TrainState,
    conditions: StopConditions,
    hooks: list[Hook],
    samples: StepSamples | None = None,
) -> StopReason:
    """Step until any rank has a reason to stop, and return it. Collective over all ranks.

    Where a hook changes the order of what comes, the readers start anew: what they have read ahead is of the old one.
    """
    run, view, record = parts.run, parts.datasets.train, samples.record if samples else None
    batch_size, length, reason = run.global_batch_size_at, run.seq_length_at, StopReason.NONE
    while reason is StopReason.NONE:
        with open_readers(parts, view, state.consumed_samples, batch_size, record, length) as readers:
            while (reason := agree(conditions.vote(state))) is StopReason.NONE:
                result = train_step(parts, state, readers)
                state.advance(result)
                for hook in hooks:
                    hook(StepContext(state, result))
                if state.order_has_changed:
                    break
    return reason


def agree(vote: StopReason) -> StopReason:
    """Return the strongest reason to stop that any rank has. Collective over all ranks."""
    strongest = torch.tensor([int(vote)])
    if dist.get_backend() == "nccl":
        strongest = strongest.cuda()
    dist.all_reduce(strongest, dist.ReduceOp.MAX)
    return StopReason(int(strongest.item()))


class SaveOnce:
    """Saves the run, but never the same iteration twice (the interval and the end may fall together)."""

    def __init__(self, parts: Components) -> None:
        self._parts = parts
        self._saved_iteration = -1

    def __call__(self, state: TrainState) -> None:
        """Write a checkpoint of `state`. Collective over all ranks."""
        if state.iteration != self._saved_iteration:
            save_state(self._parts, state)
            self._saved_iteration = state.iteration


def final_evaluation(parts: Components, state: TrainState, outputs: Outputs) -> None:
    """Evaluate the finished model on the validation and the test view, where there are any."""
    if not parts.run.train.eval_iters:
        return
    already_validated = state.iteration % parts.run.train.eval_interval == 0 and not parts.run.train.skip_train
    for split, view in (("validation", parts.datasets.valid), ("test", parts.datasets.test)):
        if view is not None and not (split == "validation" and already_validated):
            outputs.report_evaluation(state, evaluate(parts, "valid" if split == "validation" else "test"), split)


def dataset_request(run: RunConfig, tokenizer: Tokenizer) -> DatasetRequest:
    """Say what the run needs of its data."""
    evaluation = run.train.eval_iters * run.global_batch_size
    return DatasetRequest(
        data=run.data,
        tokenizer=tokenizer,
        seq_length=run.train.seq_length,
        num_samples=(total_samples(run), evaluation, evaluation),
        seed=run.train.seed,
    )


def introduce(parts: Components, platform: str) -> None:
    """Print what is about to run, and keep the resolved configuration in the run folder. Rank 0 writes."""
    run, world = parts.run, parts.world
    rows = padded_vocab_size(run, parts.tokenizer.vocab_size)
    parameters = parameter_counts(run.model, rows, run.max_position_embeddings).total
    log.info(
        f"training {parameters:,} parameters on {world.world_size} {platform} process(es): "
        f"tensor parallel {world.grid.tp_size} x pipeline {world.grid.pp_size} x "
        f"context {world.grid.cp_size} x data {world.grid.dp_size}; "
        f"vocabulary {parts.tokenizer.vocab_size} padded to {rows}; {describe_data(parts.datasets)}; "
        f"kernels: {describe_kernels(platform, run.parallel.transformer_impl, run.parallel.compile)}"
    )
    if world.rank == 0:
        make_output_folders(run)


def make_output_folders(run: RunConfig) -> None:
    """Make the folders that rank 0 writes to, and keep the configuration in that of --save. Rank 0 only.

    Raises:
        ConfigError: one cannot be written, which is better known before the first iteration than after it.
    """
    save, tensorboard = run.checkpoint.save, None if run.train.skip_train else run.logging.tensorboard_dir
    ids = None if run.train.skip_train or not run.logging.log_sample_ids else Path(run.logging.log_sample_ids).parent
    profile = profile_folder(run) if run.logging.profile else None
    outputs = {"--save": save, "--tensorboard-dir": tensorboard, "--log-sample-ids": ids, "--profile": profile}
    for flag, folder in outputs.items():
        try:
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
            if flag == "--save" and folder:
                text = yaml.safe_dump(run_config_to_dict(run), sort_keys=False)
                replace_text(Path(folder) / "run_config.yaml", text)
        except OSError as error:
            raise ConfigError(f"{flag} {folder} cannot be written: {error}", fix="choose another folder") from None


def describe_data(datasets: Datasets) -> str:
    """Return the sizes of the views in one clause."""
    sizes = {name: getattr(datasets, name) for name in ("train", "valid", "test")}
    return "samples in one epoch: " + ", ".join(f"{name} {len(view)}" for name, view in sizes.items() if view)
