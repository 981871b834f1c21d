"""The sides of the benchmarks of a training step: this project, megatron-core's local spec, transformers' Llama.

All start from the same weights, which this project draws, and see the same tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

SHAPE = (
    "--num-layers {layers} --hidden-size {hidden} --ffn-hidden-size {ffn} --num-attention-heads {heads} --swiglu "
    "--normalization RMSNorm --norm-epsilon 1e-5 --position-embedding-type {positions} "
    "--untie-embeddings-and-output-weights --disable-bias-linear --hidden-dropout 0 --attention-dropout 0 "
    "--seq-length {seq} --micro-batch-size {sequences} --lr 1e-4 --lr-decay-style constant --train-iters 100 "
    "--adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 --bf16 --device {device} --num-threads {threads}"
)
LLAMA = {
    "layers": 8,
    "hidden": 512,
    "ffn": 1408,
    "heads": 8,
    "positions": "rope",
    "sequences": 2,
    "seq": 1024,
    "device": "cpu",
    "threads": 2,
}
"""58 M parameters with a vocabulary of 32,000."""
LARGE = LLAMA | {"layers": 16, "hidden": 2048, "ffn": 5504, "heads": 16, "sequences": 4, "seq": 2048, "device": "cuda"}
"""0.94 10^9 parameters with that vocabulary, for a GPU."""
BATCHES = 64


class Outcome(NamedTuple):
    """What a step says, by which the sides are compared."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Side:
    """One way to train.

    Attributes:
        step: trains on the batch of an index and returns its loss and gradient norm, before clipping.
        trunk: the module whose output the output layer reads.
    """

    step: Callable[[int], Outcome]
    trunk: Any


@contextmanager
def connected(run: Any) -> Iterator[Any]:
    """The world of `run`, without the warnings of those whose code is measured."""
    warnings.filterwarnings("ignore")
    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform import select_platform

    with start_world(run, select_platform(run.parallel.device)) as world:
        yield world


def run_of(flags: str, world_size: int = 1) -> Any:
    """The resolved settings of a run with these flags."""
    from megatron_ext.config import load_run_config

    return load_run_config(flags.split(), world_size, "model").run


def random_tokens(vocab_size: int, shape: Mapping[str, Any]) -> Any:
    """Batches of samples, int64 `[batches, sequences, seq + 1]`, the same in every process, on the device."""
    import torch

    size = (BATCHES, shape["sequences"], shape["seq"] + 1)
    return torch.randint(0, vocab_size, size, generator=torch.Generator().manual_seed(0)).to(shape["device"])


def ours(run: Any, world: Any, tokens: Any, vocab_size: int) -> tuple[Any, Side]:
    """This project's step, as `pretrain_gpt.py` runs it; also its parts."""
    from megatron_ext.model.gpt import build_model

    return _core_side(run, world, tokens, build_model(run, vocab_size, world.device.type))


def megatron_local(run: Any, world: Any, tokens: Any, weights: dict[str, Any]) -> Side:
    """megatron-core's GPTModel with its own local layer spec, on our adapter and optimizer, without our kernels."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from megatron_ext.config.to_core import transformer_config
    from megatron_ext.model.init import initialize_parameters

    class LocalModel(GPTModel):
        """The stock model; its loss is the stock vocabulary-parallel cross entropy."""

    config = transformer_config(run, world.device.type)
    config.use_te_activation_func = False  # its own SwiGLU, not ours
    model = LocalModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=len(weights["lm_head.weight"]),
        max_sequence_length=run.train.seq_length,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    initialize_parameters(model, run)
    run = run.with_values(transformer_impl="local")
    return _core_side(run, world, tokens, [model.to(world.device)])[1]


def transformers_side(run: Any, world: Any, tokens: Any, weights: dict[str, Any], compiled: bool = False) -> Side:
    """Transformers' LlamaForCausalLM with bf16 weights and torch's fused AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = run.model
    config = LlamaConfig(
        vocab_size=len(weights["lm_head.weight"]),
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.query_groups,
        rms_norm_eps=model.layernorm_epsilon,
        max_position_embeddings=run.train.seq_length,
        use_cache=False,
    )
    llama = LlamaForCausalLM(config).to(world.device, torch.bfloat16)
    llama.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    optimizer = torch.optim.AdamW(llama.parameters(), lr=run.optim.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(llama) if compiled else llama

    def step(index: int) -> Outcome:
        batch = tokens[index % len(tokens)]
        labels = torch.cat([batch[:, :1], batch[:, 1:]], dim=1)
        # transformers shifts the labels itself: position i is scored on token i + 1
        out = forward(input_ids=batch[:, :-1], labels=labels[:, :-1], shift_labels=batch[:, 1:].contiguous())
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return Outcome(float(out.loss.detach()), float(norm))

    return Side(step, llama.model)


def transformers_compiled(run: Any, world: Any, tokens: Any, weights: dict[str, Any]) -> Side:
    """The same under torch.compile."""
    return transformers_side(run, world, tokens, weights, compiled=True)


BUILDERS = {
    "transformers-eager": transformers_side,
    "transformers-compiled": transformers_compiled,
    "megatron-local": megatron_local,
}


def _core_side(run: Any, world: Any, tokens: Any, models: list[Any]) -> tuple[Any, Side]:
    """A step of any number of ranks; under data parallelism each takes its own samples of the batch."""
    import torch

    from megatron_ext.training.components import assemble
    from megatron_ext.training.metrics import TrainState
    from megatron_ext.training.step import train_step

    sequences = tokens.shape[1]
    run = run.with_values(global_batch_size=sequences)
    parts = assemble(run, world, models)
    count = sequences // world.grid.dp_size
    samples = slice(world.at.dp_rank * count, (world.at.dp_rank + 1) * count)
    shape = (count, run.train.seq_length)
    positions = torch.arange(shape[1], device=tokens.device).expand(shape)
    mask = torch.ones(shape, device=tokens.device)

    def step(index: int) -> Outcome:
        batch = tokens[index % len(tokens)][samples]
        micro = {"tokens": batch[:, :-1].contiguous(), "labels": batch[:, 1:].contiguous()}
        reader = iter([{**micro, "position_ids": positions, "loss_mask": mask}])
        result = train_step(parts, TrainState(iteration=index), [reader])
        return Outcome(result.lm_loss, result.grad_norm or 0.0)

    return parts, Side(step, models[0].decoder)


def hugging_face_weights(run: Any, parts: Any, vocab_size: int) -> dict[str, Any]:
    """Our initial weights under transformers' names, through the converter's own table."""
    from checkpoint_convert.architectures.llama import LLAMA
    from checkpoint_convert.engine import Conversion, sizes_of

    state = {name: tensor.detach() for name, tensor in parts.models[0].state_dict().items() if tensor is not None}
    source = InMemory({name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")})
    conversion = Conversion(LLAMA, run.model, sizes_of(run.model, vocab_size, vocab_size))
    return {name: tensor.float().cpu().clone() for name, tensor in conversion.export(source)}


class InMemory:
    """Weights in memory, in the form that the converter reads."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one weight."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> Any:
        """Type of one weight."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Any:
        """One weight."""
        return self._tensors[name]
