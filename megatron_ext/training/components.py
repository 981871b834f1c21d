"""What a training run is made of, built once and passed to whoever works on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_ext.config import RunConfig
from megatron_ext.config.to_core import ddp_config
from megatron_ext.model.gpt import PretrainGPT, build_model
from megatron_ext.optim.build import build_optimizer
from megatron_ext.optim.freeze import freeze_parameters
from megatron_ext.parallel.ordered import OrderedDataParallel
from megatron_ext.parallel.world import World
from megatron_ext.platform.kernels import NATIVE, choose_kernels
from megatron_ext.training.accumulation import add_gradients_natively
from megatron_ext.training.profile import GRADIENTS, Profile
from megatron_ext.training.schedule import Schedule, schedule_settings

if TYPE_CHECKING:
    from megatron_ext.data.datasets import Datasets
    from megatron_ext.tokenizer.base import Tokenizer


@dataclass
class Components:
    """The parts of one run on this rank.

    Attributes:
        run: the resolved configuration.
        world: this rank among all.
        tokenizer: what the data was made with.
        datasets: training, validation and test views, the same on every rank.
        chunks: this rank's model chunks in megatron-core's data parallelism; one, or one per virtual stage.
        optimizer: megatron-core's optimizer over our update rule.
        schedule: learning rate and weight decay.
        profile: times and traces some steps, with --profile.
    """

    run: RunConfig
    world: World
    tokenizer: Tokenizer | None
    datasets: Datasets | None
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    schedule: Schedule
    profile: Profile

    @property
    def models(self) -> list[PretrainGPT]:
        """The model chunks without their wrapper."""
        return [chunk.module for chunk in self.chunks]

    @property
    def num_sources(self) -> int:
        """Datasets that training samples come from, where they are told apart; 0 without a blend."""
        view = self.datasets.train if self.datasets else None
        return 0 if view is None or len(view.source_names) < 2 else len(view.source_names)


def build_components(run: RunConfig, world: World, tokenizer: Tokenizer, datasets: Datasets) -> Components:
    """Build model, gradient buffers, optimizer and schedule; every rank calls it."""
    models = build_model(run, tokenizer.vocab_size, world.device.type)
    return assemble(run, world, models, tokenizer, datasets)


def assemble(
    run: RunConfig,
    world: World,
    models: list[PretrainGPT],
    tokenizer: Tokenizer | None = None,
    datasets: Datasets | None = None,
) -> Components:
    """Give built model chunks their gradient buffers, optimizer and schedule; every rank calls it.

    Tests and benchmarks that feed tensors of their own leave tokenizer and datasets out.
    """
    freeze_parameters(run, models)
    chunks = wrap_data_parallel(run, models)
    if choose_kernels(world.device.type, run.parallel.transformer_impl).elementwise == NATIVE:
        for chunk in chunks:
            add_gradients_natively(chunk)
    optimizer = build_optimizer(run, chunks)
    core = models[0].config
    profile = Profile(run, world, (core, optimizer.config))
    # the callables that megatron-core's schedules ask for
    core.finalize_model_grads_func = profile.timed(finalize_model_grads, GRADIENTS, "finalize-gradients")
    core.grad_scale_func = optimizer.scale_loss
    no_sync = [chunk.no_sync for chunk in chunks]
    core.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    schedule = Schedule.from_settings(schedule_settings(run))
    return Components(run, world, tokenizer, datasets, chunks, optimizer, schedule, profile)


def wrap_data_parallel(run: RunConfig, models: list[PretrainGPT]) -> list[DistributedDataParallel]:
    """Give each model chunk its gradient buffers; buckets of later chunks are reduced as one (Megatron-LM's rule)."""
    wrapper = OrderedDataParallel if run.parallel.deterministic_data_parallel else DistributedDataParallel
    return [
        wrapper(model.config, ddp_config(run), model, disable_bucketing=index > 0) for index, model in enumerate(models)
    ]


@contextmanager
def gathered_parameters(parts: Components) -> Iterator[None]:
    """Hold all parameters up to date inside the block. Collective over all ranks.

    With `--overlap-param-gather` the parameters of an update arrive during the next forward pass; a checkpoint or an
    evaluation in between must not see the old ones.
    """
    late = parts.run.parallel.overlap_param_gather
    for chunk in parts.chunks if late else ():
        chunk.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for chunk in parts.chunks if late else ():
            chunk.enable_forward_pre_hook()
