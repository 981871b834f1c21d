"""megatron-core's two parallel linear layers with a bias that is chosen for each projection, not for all at once.

Classes, since megatron-core takes some of its layers as classes only, and asks each for a bias by `add_bias_linear`.
"""

from __future__ import annotations

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor


class ColumnParallelWithBias(ColumnParallelLinear):
    """ColumnParallelLinear with a bias, whatever `add_bias_linear` is; takes its arguments."""

    def __init__(self, *core: object, **named: object) -> None:
        super().__init__(*core, **{**named, "bias": True})


class ColumnParallelWithoutBias(ColumnParallelLinear):
    """ColumnParallelLinear without a bias, whatever `add_bias_linear` is; takes its arguments."""

    def __init__(self, *core: object, **named: object) -> None:
        super().__init__(*core, **{**named, "bias": False})


class RowParallelWithBias(RowParallelLinear):
    """RowParallelLinear with a bias, whatever `add_bias_linear` is; takes its arguments."""

    def __init__(self, *core: object, **named: object) -> None:
        super().__init__(*core, **{**named, "bias": True})

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the product and the bias to add to it: never the parameter itself, but a copy.

        A parameter that leaves a recomputed module becomes, to autograd, a result of that module's first pass, and
        the second pass would ask for its gradient without end.

        Args:
            input_: `[s, b, width/tp]`.
        """
        output, bias = super().forward(input_)
        return output, None if bias is None else bias.clone()


class RowParallelWithoutBias(RowParallelLinear):
    """RowParallelLinear without a bias, whatever `add_bias_linear` is; takes its arguments."""

    def __init__(self, *core: object, **named: object) -> None:
        super().__init__(*core, **{**named, "bias": False})


def column_parallel(bias: bool) -> type[ColumnParallelLinear]:
    """Return the class of a projection whose output, and bias, is split over the tensor-parallel ranks."""
    return ColumnParallelWithBias if bias else ColumnParallelWithoutBias


def row_parallel(bias: bool) -> type[RowParallelLinear]:
    """Return the class of a projection whose input is split over the tensor-parallel ranks; its bias is not."""
    return RowParallelWithBias if bias else RowParallelWithoutBias
