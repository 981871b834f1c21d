"""Row types of a weight table: where the numbers of one tensor stand on either side.

A row is a frozen dataclass with two pure functions on full tensors, inverse to each other: `to_hf` and `to_megatron`.
Both keep dtype and device. Names may hold `{i}`, the 0-based layer. Shapes are written in the letters of the README's
legend; `Sizes` turns them into numbers, so that a row can say what both sides must look like before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

When = str | Callable[[Any], bool]
"""Which models have a row: those with a true ModelConfig field of this name (all, if empty), or those it is true of."""


@dataclass(frozen=True)
class Sizes:
    """The numbers behind the letters.

    `h` hidden, `f` ffn, `np` heads, `ng` query groups, `hn` head size; `v` is the
    tokenizer's vocabulary, `vp` the rows that the training side holds, `vp >= v`.
    """

    layers: int
    h: int
    f: int
    np: int
    ng: int
    hn: int
    v: int
    vp: int

    def shape(self, letters: str) -> Shape:
        """The shape that `letters` spells, e.g. `"np*hn h"` -> `(np * hn, h)`; each word is a product of letters."""
        return tuple(self._product(word) for word in letters.split())

    def _product(self, word: str) -> int:
        result = 1
        for letter in word.split("*"):
            result *= int(letter) if letter.isdigit() else int(getattr(self, letter))
        return result


class Row(Protocol):
    """What the engine needs of a row."""

    @property
    def megatron(self) -> str:
        """Name on the training side, with `{i}` for the layer; empty if that side has no such tensor."""

    @property
    def when(self) -> When:
        """Which models have this row."""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """Names on the Hugging Face side, with `{i}`, in the order of `to_hf`'s tensors."""

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """Shape of the training side's full tensor."""

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """Shapes of the Hugging Face tensors, in the order of `hf_names`."""

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """The Hugging Face tensors that hold the numbers of `tensor`."""

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The inverse of `to_hf`."""


@dataclass(frozen=True)
class Same:
    """One tensor on either side, the same numbers in the same places.

    Megatron: `shape`. Hugging Face: `shape`.
    """

    megatron: str
    hf: str
    shape: str
    when: When = ""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`shape` in numbers."""
        return sizes.shape(self.shape)

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`shape` in numbers, once."""
        return (sizes.shape(self.shape),)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """The tensor itself."""
        return (tensor,)

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The tensor itself."""
        return tensors[0]


@dataclass(frozen=True)
class Vocab:
    """A matrix with one row per token, or a vector: padded on the training side, not on the other.

    Megatron: `[vp, h]`, rows `v..vp-1` pad the vocabulary to a multiple and never take part in the softmax.
    Hugging Face: `[v, h]`. Export cuts the padding rows; import fills them with zeros, so only they can differ after a
    round trip. `columns` is empty for a vector (a bias).
    """

    megatron: str
    hf: str
    when: When = ""
    columns: str = "h"

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`[vp, h]`."""
        return sizes.shape(f"vp {self.columns}")

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`[v, h]`."""
        return (sizes.shape(f"v {self.columns}"),)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """The first `v` rows."""
        return (tensor[: sizes.v],)

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The rows, then `vp - v` rows of zeros."""
        (rows,) = tensors
        padded = rows.new_zeros((sizes.vp, *rows.shape[1:]))
        padded[: sizes.v] = rows
        return padded


@dataclass(frozen=True)
class QKV:
    """The attention input projection: grouped on the training side, three matrices on the other.

    Megatron: `[ng * (np/ng + 2) * hn, h]`: for each query group, the rows of its np/ng queries, then of
    its key, then of its value.
    Hugging Face: query `[np*hn, h]`, key `[ng*hn, h]`, value `[ng*hn, h]`; query heads in the order of the groups.
    `columns` is empty for the bias.
    """

    megatron: str
    query: str
    key: str
    value: str
    when: When = ""
    columns: str = "h"

    @property
    def hf_names(self) -> tuple[str, ...]:
        """Query, key, value."""
        return (self.query, self.key, self.value)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`[(np + 2*ng) * hn, h]`."""
        return (_packed_shape(sizes)[0], *sizes.shape(self.columns))

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`[np*hn, h]`, `[ng*hn, h]`, `[ng*hn, h]`."""
        query, key = (sizes.shape(f"{heads}*hn {self.columns}") for heads in ("np", "ng"))
        return (query, key, key)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """Queries, keys and values, each gathered over the groups."""
        return split_groups(tensor, sizes)

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Queries, key and value of each group side by side again."""
        return join_groups(tensors, sizes)


@dataclass(frozen=True)
class PackedQKV:
    """The attention input projection: grouped on the training side, packed by kind on the other (Baichuan's W_pack).

    Megatron: `[ng * (np/ng + 2) * hn, h]` as in `QKV`.
    Hugging Face: `[(np + 2*ng) * hn, h]`: the rows of all queries, then of all keys, then of all values.
    """

    megatron: str
    hf: str
    when: When = ""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`[(np + 2*ng) * hn, h]`."""
        return _packed_shape(sizes)

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`[(np + 2*ng) * hn, h]`."""
        return (_packed_shape(sizes),)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """The three kinds of `QKV`, one under the other."""
        return (_stack(*split_groups(tensor, sizes)),)

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The three kinds cut apart and grouped again."""
        (packed,) = tensors
        rows = [sizes.np * sizes.hn, sizes.ng * sizes.hn, sizes.ng * sizes.hn]
        return join_groups(packed.split(rows), sizes)


@dataclass(frozen=True)
class Gated:
    """The first projection of a gated MLP: one matrix on the training side, two on the other.

    Megatron: `[2*f, h]`: all gate rows (through SiLU), then all up rows.
    Hugging Face: gate `[f, h]`, up `[f, h]`. `columns` is empty for the bias.
    """

    megatron: str
    gate: str
    up: str
    when: When = ""
    columns: str = "h"

    @property
    def hf_names(self) -> tuple[str, ...]:
        """Gate, up."""
        return (self.gate, self.up)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`[2*f, h]`."""
        return sizes.shape(f"2*f {self.columns}")

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`[f, h]` twice."""
        return (sizes.shape(f"f {self.columns}"), sizes.shape(f"f {self.columns}"))

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """The upper half and the lower half."""
        return (tensor[: sizes.f], tensor[sizes.f :])

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Gate over up."""
        return _stack(*tensors)


@dataclass(frozen=True)
class BlockedQVK:
    """The attention input projection in four blocks, as CodeGen has it, whose training ran on four ranks.

    Megatron: `[3 * np * hn, h]` as in `QKV`, each query with a key and value of its own.
    Hugging Face: `[3 * np * hn, h]`: for each quarter of the heads the rows of its queries, its values, its keys.
    """

    megatron: str
    hf: str
    when: When = ""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """`[3 * np * hn, h]`."""
        return sizes.shape("3*np*hn h")

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """`[3 * np * hn, h]`."""
        return (sizes.shape("3*np*hn h"),)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """Rows of head, kind (query, key, value) to rows of quarter, kind (query, value, key), head."""
        rows = tensor.reshape(4, -1, 3, sizes.hn, sizes.h)[:, :, [0, 2, 1]]
        return (rows.transpose(1, 2).reshape(-1, sizes.h),)

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The way back."""
        rows = tensors[0].reshape(4, 3, -1, sizes.hn, sizes.h)[:, [0, 2, 1]]
        return rows.transpose(1, 2).reshape(-1, sizes.h)


@dataclass(frozen=True)
class Zeros:
    """Biases that the class on the other side has and the training model has not: export writes zeros.

    Megatron: nothing. Hugging Face: a vector of each of `hf`, of the size that stands at its place in `sizes`.
    """

    hf: tuple[str, ...]
    sizes: tuple[str, ...]
    when: When = ""
    megatron: str = ""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The names."""
        return self.hf

    def megatron_shape(self, sizes: Sizes) -> Shape:
        """Of nothing."""
        return ()

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """One number each."""
        return tuple(sizes.shape(letters) for letters in self.sizes)

    def to_hf(self, tensor: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """Zeros of the dtype and on the device of `tensor`."""
        return tuple(tensor.new_zeros(shape) for shape in self.hf_shapes(sizes))

    def to_megatron(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Nothing, `[0]`.

        Raises:
            ConversionError: a number that is not 0 would be lost.
        """
        for name, tensor in zip(self.hf, tensors, strict=True):
            if tensor.any():
                raise ConversionError(
                    f"{name} is not zero, but config.json says so in zero_biases",
                    fix="remove zero_biases from config.json: the biases then become part of the model",
                )
        return tensors[0][:0]


def split_groups(tensor: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Cut `[ng * (np/ng + 2) * hn, ...]` into query `[np*hn, ...]`, key and value `[ng*hn, ...]`."""
    tail = tensor.shape[1:]
    queries = sizes.np // sizes.ng
    grouped = tensor.reshape(sizes.ng, queries + 2, sizes.hn, *tail)
    query, key, value = grouped.split([queries, 1, 1], dim=1)
    return query.reshape(-1, *tail), key.reshape(-1, *tail), value.reshape(-1, *tail)


def join_groups(parts: Sequence[Tensor], sizes: Sizes) -> Tensor:
    """The inverse of `split_groups`: query, key, value -> `[ng * (np/ng + 2) * hn, ...]`."""
    import torch

    grouped = [part.reshape(sizes.ng, -1, sizes.hn, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).reshape(-1, *parts[0].shape[1:])


def _packed_shape(sizes: Sizes) -> Shape:
    return ((sizes.np + 2 * sizes.ng) * sizes.hn, sizes.h)


def _stack(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts, dim=0)
