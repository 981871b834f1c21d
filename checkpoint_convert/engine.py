"""The loop over a weight table: binds names, checks that each is used exactly once, and streams tensors either way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.rows import Row, Shape, Sizes
from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIASES = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)
"""Transformer-Engine ending of a training-side name -> the local spec's ending, which the tables use."""

LISTED_NAMES = 8


class TensorSource(Protocol):
    """Full tensors by name, one at a time; a FullCheckpoint and an HfFolder are such."""

    def names(self) -> list[str]:
        """All names."""

    def shape(self, name: str) -> Sequence[int]:
        """Shape of the full tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Type of the stored elements, without reading them."""

    def read(self, name: str) -> Tensor:
        """The full tensor on the CPU."""


@dataclass(frozen=True)
class BoundRow:
    """A row for one layer (or for none): its names hold no `{i}` any more."""

    row: Row
    megatron: str
    hf: tuple[str, ...]


def sizes_of(model: Any, vocab_size: int, padded_vocab_size: int) -> Sizes:
    """The numbers that `model` (ModelConfig) and the two vocabulary sizes give to the letters of the table."""
    return Sizes(
        layers=model.num_layers,
        h=model.hidden_size,
        f=model.ffn_size,
        np=model.num_attention_heads,
        ng=model.query_groups,
        hn=model.head_dim,
        v=vocab_size,
        vp=padded_vocab_size,
    )


def bind(weights: Sequence[Row], model: Any) -> list[BoundRow]:
    """The rows that this model has, layer by layer: `{i}` rows that stand together are repeated as one block."""
    present = [row for row in weights if _belongs(row, model)]
    bound: list[BoundRow] = []
    block: list[Row] = []
    for row in [*present, None]:
        if row is not None and "{i}" in row.hf_names[0]:
            block.append(row)
            continue
        bound += [_bound(item, layer) for layer in range(model.num_layers if block else 0) for item in block]
        block = []
        if row is not None:
            bound.append(_bound(row, None))
    return bound


def check_names(expected: Iterable[str], found: Iterable[str], ignored: Iterable[str], side: str) -> None:
    """Raise ConversionError, listing names, unless every name on `side` is matched by exactly one row of the table.

    Args:
        expected: the bound names of the table, one entry per row that claims them.
        found: the names that are there.
        ignored: patterns with `{i}` of tensors that are no weights.
        side: what to call this side in the message.
    """
    claims = Counter(expected)
    skip = [re.compile(re.escape(pattern).replace(r"\{i\}", r"\d+") + r"\Z") for pattern in ignored]
    there = {name for name in found if name in claims or not any(pattern.match(name) for pattern in skip)}
    problems = {
        "missing": sorted(claims.keys() - there),
        "matched by no row": sorted(there - claims.keys()),
        "matched by several rows": sorted(name for name, count in claims.items() if count > 1),
    }
    texts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if texts:
        raise ConversionError(
            f"the tensors of {side} do not fit the table: {'; '.join(texts)}",
            "every tensor on either side is used exactly once",
            "check that the architecture and the model's settings are those of these weights",
        )


@dataclass(frozen=True)
class Conversion:
    """One model between the two sides: which tensors there are, and the stream of them in either direction.

    Args:
        architecture: the table.
        model: the ModelConfig.
        sizes: numbers of this model.
    """

    architecture: Architecture
    model: Any
    sizes: Sizes

    def rows(self) -> list[BoundRow]:
        """The bound rows in the order of the stream."""
        return bind(self.architecture.weights, self.model)

    def hf_layout(self) -> list[tuple[str, Shape]]:
        """Name and shape of every Hugging Face tensor, in the order of `export`."""
        return [pair for row in self.rows() for pair in zip(row.hf, row.row.hf_shapes(self.sizes), strict=True)]

    def check_megatron(self, source: TensorSource) -> None:
        """Raise ConversionError unless names and shapes of the training side are exactly the table's."""
        rows = self.rows()
        ends = [f"{name} (renamed to the local spec's)" for name in _clashes(source.names())]
        rows = [row for row in rows if row.megatron]
        check_names([row.megatron for row in rows], [*_canonical(source.names()), *ends], (), "the checkpoint")
        actual = _canonical(source.names())
        for row in rows:
            _check_shape(row.megatron, row.row.megatron_shape(self.sizes), source.shape(actual[row.megatron]))

    def check_hf(self, source: TensorSource) -> None:
        """Raise ConversionError unless names and shapes of the Hugging Face side are exactly the table's."""
        layout = self.hf_layout()
        names = [name for row in self.rows() for name in row.hf]
        ignored = list(self.architecture.ignored_hf)
        if not set(names) & {"lm_head.weight"}:
            ignored.append("lm_head.weight")
        check_names(names, source.names(), ignored, "the Hugging Face folder")
        for name, shape in layout:
            _check_shape(name, shape, source.shape(name))

    def export(
        self, source: TensorSource, change: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors, one row at a time; `change` (a cast) is applied to each read tensor."""
        actual = _canonical(source.names())
        for row in self.rows():
            tensor = source.read(actual[row.megatron]) if row.megatron else _nothing(source)
            tensor = tensor if change is None else change(tensor)
            yield from zip(row.hf, row.row.to_hf(tensor, self.sizes), strict=True)

    def restore(
        self, source: TensorSource, change: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Training-side names and tensors, one row at a time; `change` is applied to each Hugging Face tensor."""
        for row in self.rows():
            tensors = [source.read(name) for name in row.hf]
            tensors = tensors if change is None else [change(tensor) for tensor in tensors]
            restored = row.row.to_megatron(tensors, self.sizes)
            if row.megatron:
                yield row.megatron, restored


def _belongs(row: Row, model: Any) -> bool:
    if isinstance(row.when, str):
        return not row.when or bool(getattr(model, row.when))
    return row.when(model)


def _nothing(source: TensorSource) -> Tensor:
    """An empty tensor of the type that the weights have."""
    import torch

    return torch.empty(0, dtype=source.dtype(source.names()[0]))


def _bound(row: Row, layer: int | None) -> BoundRow:
    def name(pattern: str) -> str:
        return pattern if layer is None else pattern.replace("{i}", str(layer))

    return BoundRow(row, name(row.megatron), tuple(name(pattern) for pattern in row.hf_names))


def _local(name: str) -> str:
    for ending, local in ALIASES:
        if name.endswith(ending):
            return name.removesuffix(ending) + local
    return name


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """Local-spec name -> the name in the source; extra states (no weights) left out."""
    return {_local(name): name for name in names if not name.endswith("_extra_state")}


def _clashes(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(_local(name) for name in names).items() if count > 1]


def _check_shape(name: str, wanted: Sequence[int], found: Sequence[int]) -> None:
    if tuple(wanted) != tuple(found):
        raise ConversionError(
            f"{name} has shape {list(found)}, the model's settings make it {list(wanted)}",
            fix="check that the settings belong to these weights",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED_NAMES])
    return shown if len(names) <= LISTED_NAMES else f"{shown} and {len(names) - LISTED_NAMES} more"
