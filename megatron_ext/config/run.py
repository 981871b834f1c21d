"""RunConfig: all sections of one run, the numbers derived from several of them, and its plain-dictionary form."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.config.knob import Section, Setting, settings_of
from megatron_ext.config.pipeline_split import Chunks, layers_of_chunks, layout_stages
from megatron_ext.config.sections.checkpoint import CheckpointConfig
from megatron_ext.config.sections.data import DataConfig
from megatron_ext.config.sections.logging import LoggingConfig
from megatron_ext.config.sections.model import ModelConfig
from megatron_ext.config.sections.optim import OptimConfig
from megatron_ext.config.sections.parallel import ParallelConfig
from megatron_ext.config.sections.train import TrainConfig
from megatron_ext.config.seq_length_warmup import length_after, parse_length_stage
from megatron_ext.errors import ConfigError

SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
}


@functools.cache
def section_of() -> dict[str, str]:
    """Section name of every setting; setting names are unique over all sections."""
    return {name: section for section, cls in SECTIONS.items() for name in settings_of(cls)}


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting by name, in the order of the sections."""
    return {name: setting for cls in SECTIONS.values() for name, setting in settings_of(cls).items()}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of one run, frozen. The properties are derived numbers; none is ever written back.

    The properties assume settings that pass `check_rules`.

    Args:
        world_size: number of processes of the job.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    world_size: int = 1

    def get(self, name: str) -> Any:
        """The value of one setting by its name alone."""
        return getattr(getattr(self, section_of()[name]), name)

    def with_values(self, **values: Any) -> RunConfig:
        """A copy with other values for some settings (or `world_size`), by their names alone."""
        changes: dict[str, Any] = {"world_size": values.pop("world_size", self.world_size)}
        for section in SECTIONS:
            mine = {name: value for name, value in values.items() if section_of()[name] == section}
            changes[section] = dataclasses.replace(getattr(self, section), **mine)
        return dataclasses.replace(self, **changes)

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model that train together, dp: world size / (tp * pp * cp)."""
        return self.world_size // self.parallel.model_parallel_size

    @property
    def virtual_pipeline_model_parallel_size(self) -> int | None:
        """Chunks per pipeline rank, vpp; None without the interleaved schedule."""
        parallel, layers = self.parallel, self.model.num_layers
        stages = layout_stages(parallel)
        if stages is not None:
            chunks = len(stages) // parallel.pipeline_model_parallel_size
            return chunks if chunks > 1 else None
        if parallel.num_virtual_stages_per_pipeline_rank is not None:
            return parallel.num_virtual_stages_per_pipeline_rank
        if parallel.num_layers_per_virtual_pipeline_stage is None or layers is None:
            return None
        units = (layers + parallel.parts_counted_as_layers) // parallel.pipeline_model_parallel_size
        return units // parallel.num_layers_per_virtual_pipeline_stage

    @property
    def layers_per_chunk(self) -> Chunks:
        """Transformer layers of each model chunk, `[pp][vpp]`; empty where settings break the rules."""
        chunks = self.virtual_pipeline_model_parallel_size or 1
        return layers_of_chunks(self.parallel, self.model.num_layers or 0, chunks) or ()

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """Transformer layers on each pipeline rank, `[pp]` (all chunks together); empty as `layers_per_chunk` is."""
        return tuple(sum(chunks) for chunks in self.layers_per_chunk)

    @property
    def sequence_unit(self) -> int:
        """Tokens that the length of a sequence is a multiple of: 2 cp chunks, each cut again by --sequence-parallel."""
        parallel = self.parallel
        chunks = 2 * parallel.context_parallel_size if parallel.context_parallel_size > 1 else 1
        return chunks * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest sequence of the model, tokens: the setting, or else --seq-length."""
        return self.model.max_position_embeddings or self.train.seq_length

    @property
    def batch_unit(self) -> int:
        """Samples that all data-parallel ranks take in one micro-batch each: mbs * dp."""
        return (self.train.micro_batch_size or 1) * self.data_parallel_size

    @property
    def global_batch_size(self) -> int:
        """Samples in one optimizer step once any ramp-up is over."""
        return self.train.global_batch_size or self.batch_unit

    def global_batch_size_at(self, consumed_samples: int) -> int:
        """Samples in the optimizer step that starts after `consumed_samples`.

        Source: megatron-core 0.16.1 num_microbatches_calculator.py (RampupBatchsizeNumMicroBatchesCalculator).
        """
        if self.train.rampup_batch_size is None:
            return self.global_batch_size
        start, increment, ramp_samples = self.train.rampup_batch_size
        if consumed_samples > ramp_samples:
            return self.global_batch_size
        samples_per_increment = ramp_samples / ((self.global_batch_size - start) // increment)
        return min(self.global_batch_size, start + int(consumed_samples / samples_per_increment) * increment)

    def seq_length_at(self, consumed_samples: int) -> int:
        """Length of the sequences that samples are cut into in the step that starts after `consumed_samples`, tokens.

        --seq-length but for --seq-length-warmup, whose stages go by the tokens consumed at the beginning of a step.
        """
        whole = self.train.seq_length or 0
        stages = [parse_length_stage(word) for word in self.train.seq_length_warmup or ()]
        return length_after(stages, consumed_samples * whole) or whole

    def num_microbatches_at(self, consumed_samples: int) -> int:
        """Micro-batches of each data-parallel rank in the step that starts after `consumed_samples`."""
        return self.global_batch_size_at(consumed_samples) // self.batch_unit

    def samples_of(self, length: str) -> int | None:
        """A length that is given in samples or in tokens, in samples; None when it is given in neither.

        Tokens count as the whole samples of --seq-length that they make, also under --seq-length-warmup, which cuts
        samples but leaves their tokens.

        Args:
            length: `train`, `lr_decay`, `lr_warmup` or `lr_wsd_decay`.
        """
        tokens = self.get(f"{length}_tokens")
        if tokens and self.train.seq_length:
            return int(tokens) // self.train.seq_length
        samples: int | None = self.get(f"{length}_samples")
        return samples

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of each data-parallel rank in one step once any ramp-up is over."""
        return self.global_batch_size // self.batch_unit

    def summed_run_at(self, consumed_samples: int) -> int:
        """Micro-batches whose gradients --deterministic-data-parallel sums one after the other, before pairs.

        The micro-batches of all ranks are counted, so the number does not depend on how many ranks there are.
        """
        micro_batches = self.global_batch_size_at(consumed_samples) // (self.train.micro_batch_size or 1)
        parts = self.parallel.deterministic_data_parallel_parts or micro_batches & -micro_batches
        return micro_batches // parts

    @property
    def gradient_bucket_size(self) -> int | None:
        """Parameters in one gradient bucket; None where all gradients of a model chunk are one.

        The default is that of megatron-core 0.16.1 (distributed_data_parallel.py) as Baichuan 2's report and others
        use it: more ranks cut a bucket into more messages, which must stay long enough for the network.
        """
        if not self.parallel.overlap_grad_reduce:
            return None
        return self.parallel.ddp_bucket_size or max(40_000_000, 1_000_000 * self.data_parallel_size)

    @property
    def total_train_iters(self) -> int:
        """Optimizer steps of the whole run; for --train-samples (-tokens), the full batches that fit, with ramp-up."""
        if self.train.train_iters is not None:
            return self.train.train_iters
        wanted, consumed, iterations = self.samples_of("train") or 0, 0, 0
        ramp_samples = self.train.rampup_batch_size[2] if self.train.rampup_batch_size else -1
        while consumed <= ramp_samples and consumed + self.global_batch_size_at(consumed) <= wanted:
            consumed += self.global_batch_size_at(consumed)
            iterations += 1
        return iterations + (max(0, wanted - consumed) // self.global_batch_size if consumed > ramp_samples else 0)

    @property
    def grad_reduce_in_fp32(self) -> bool:
        """Whether gradients are accumulated and reduced in fp32 under a half-precision compute type."""
        return self.train.accumulate_allreduce_grads_in_fp32 or self.train.bf16


def run_config_to_dict(run: RunConfig) -> dict[str, Any]:
    """The run as plain values, nested by section, ready for JSON or YAML; `run_config_from_dict` undoes it."""
    result: dict[str, Any] = {}
    for section in SECTIONS:
        values = dataclasses.asdict(getattr(run, section))
        result[section] = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {**result, "world_size": run.world_size}


def run_config_from_dict(values: dict[str, Any]) -> RunConfig:
    """The run that `run_config_to_dict` described; a setting that is absent takes its default.

    Raises:
        ConfigError: an unknown section or setting, or a value of the wrong type.
    """
    parts: dict[str, Any] = {}
    for section, entries in values.items():
        if section == "world_size" and type(entries) is int and entries >= 1:
            parts[section] = entries
        elif section in SECTIONS and isinstance(entries, dict):
            unknown = sorted(set(entries) - set(settings_of(SECTIONS[section])))
            if unknown:
                raise ConfigError(f"stored configuration: unknown setting {section}.{unknown[0]}")
            parts[section] = SECTIONS[section](**entries)
        else:
            raise ConfigError(f"stored configuration: {section}: {entries!r} is not a section of settings")
    return RunConfig(**parts)
