"""Muon: the matrices of the layers move by their orthogonalised momentum, everything else by AdamW.

The step count and the state are kept as in `adamw`. An orthogonalisation needs the whole matrix: tensor-parallel ranks
gather their slices of the momentum, and each computes all of it. So an update costs, on every rank of every
tensor-parallel and data-parallel group, an all-gather of the matrix and 5 x (4 m^2 n + 2 m^3) operations for a matrix
of m x n, m <= n; it is the same under every layout (law L1). megatron-core's default, each rank's slice on its own,
costs less and is another optimizer for every tensor-parallel size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.optim.adamw import AdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5; five rounds bring singular values between 0.002 and 1 to between 0.7 and 1.2."""


class Matrices(NamedTuple):
    """Which matrices the rows of a weight hold on a rank: parts of so many rows each, over and over.

    No parts: the rows are one matrix, and those of further tensor-parallel ranks follow. `apart`: each part is a matrix
    of its own (with all its repetitions), else they make one.
    """

    parts: tuple[int, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class MuonSettings:
    """What megatron-core calls `muon_*`.

    `dtype` is what GPUs orthogonalise in; a CPU does it in fp32.
    """

    momentum: float = 0.95
    use_nesterov: bool = False
    num_ns_steps: int = 5
    scale_mode: str = "spectral"
    extra_scale_factor: float = 1.0
    dtype: torch.dtype = torch.float32


def muon_settings(run: RunConfig) -> MuonSettings:
    """The settings of a run; GPUs orthogonalise in bf16 where they compute in half precision."""
    optim = run.optim
    return MuonSettings(
        momentum=optim.muon_momentum,
        use_nesterov=optim.muon_use_nesterov,
        num_ns_steps=optim.muon_num_ns_steps,
        scale_mode=optim.muon_scale_mode,
        extra_scale_factor=optim.muon_extra_scale_factor,
        dtype=torch.bfloat16 if run.train.bf16 or run.train.fp16 else torch.float32,
    )


def matrices_of(run: RunConfig, name: str, parameter: Tensor) -> Matrices | None:
    """Say how Muon reads a weight of this rank; None for what AdamW updates: embeddings, head, norms, biases.

    Query, key and value are a matrix each unless `--muon-no-split-qkv` (all heads of one kind together); gate and up
    projection are one, as in megatron-core.

    Args:
        run: the optimizer, the shape of the attention, the layout.
        name: the canonical name.
        parameter: this rank's slice.
    """
    model = run.model
    if run.optim.optimizer != "muon" or parameter.dim() != 2 or not name.startswith("decoder.layers."):
        return None
    if name.endswith("linear_qkv.weight") and run.optim.muon_split_qkv:
        queries = model.heads // model.query_groups * model.head_dim
        return Matrices((queries, model.head_dim, model.head_dim), apart=True)
    if name.endswith("linear_fc1.weight") and model.swiglu:
        return Matrices((parameter.size(0) // 2,) * 2)  # a rank holds its share of the gate, then its share of the up
    return Matrices()


class Muon(AdamW):
    """Orthogonalised momentum with decoupled weight decay, fp32 state.

    m <- mu m + (1 - mu) grad; d = m, or with Nesterov mu m + (1 - mu) grad;
    theta <- theta - lr (weight_decay theta + scale x orthogonal(d)).

    Scale, for a matrix of out x in: `spectral` sqrt(max(out, in)), which gives every element of the update the mean
    square 1 (with --muon-extra-scale-factor 0.2 the size of AdamW's, arXiv:2502.16982); `unit_rms_norm` sqrt(out / in);
    `shape_scaling` sqrt(max(1, out / in)). A group without `matrices` is AdamW's.

    Args:
        params: groups of parameters; those with `matrices` hold weights of two dimensions.
        settings: of the orthogonalised groups.
        tp_group: the ranks over which `partition_dim` of a weight is cut; None for whole weights.
        **adamw: AdamW's own arguments.

    Source: https://kellerjordan.github.io/posts/muon; names, defaults and scales of megatron-core 0.16.1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        settings: MuonSettings,
        tp_group: dist.ProcessGroup | None = None,
        **adamw: Any,
    ) -> None:
        super().__init__(params, **adamw)
        self.settings, self._tp_group = settings, tp_group

    def init_state(self) -> None:
        """Give every parameter zero moments, one for a matrix and AdamW's two for the rest."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            names = self.state_names if group.get("matrices") is None else ("momentum_buffer",)
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {name: torch.zeros_like(parameter.data) for name in names}

    def _update(self, with_gradient: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        if group.get("matrices") is None:
            super()._update(with_gradient, group)
            return
        momentum_share = self.settings.momentum
        for parameter, gradient in with_gradient:
            momentum = self.state[parameter]["momentum_buffer"].lerp_(gradient, 1.0 - momentum_share)
            direction = gradient.lerp(momentum, momentum_share) if self.settings.use_nesterov else momentum
            update = self._orthogonal(direction, getattr(parameter, "partition_dim", 0), group["matrices"])
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _orthogonal(self, direction: Tensor, cut_dim: int, matrices: Matrices) -> Tensor:
        """Orthogonalise and scale each matrix of a weight, fp32, this rank's slice. Collective over `tp_group`."""
        shares = self._gathered(direction.to(self.settings.dtype if direction.is_cuda else torch.float32))
        slices_of_parts = zip(*(parts_of(share, matrices) for share in shares), strict=True)
        whole = [torch.cat(slices, dim=cut_dim) for slices in slices_of_parts]
        if matrices.apart:
            results = [self._scaled(matrix) for matrix in whole]
        else:
            results = list(self._scaled(torch.cat(whole)).split([len(part) for part in whole]))
        rank = dist.get_rank(self._tp_group) if len(shares) > 1 else 0
        return joined([result.chunk(len(shares), dim=cut_dim)[rank] for result in results], matrices)

    def _gathered(self, own: Tensor) -> Sequence[Tensor]:
        ranks = 1 if self._tp_group is None else self._tp_group.size()
        if ranks == 1:
            return [own]
        shares = own.new_empty(ranks * len(own), own.size(1))
        dist.all_gather_into_tensor(shares, own.contiguous(), group=self._tp_group)
        return shares.chunk(ranks)

    def _scaled(self, matrix: Tensor) -> Tensor:
        settings = self.settings
        scale = scale_of(matrix.shape, settings.scale_mode) * settings.extra_scale_factor
        return newton_schulz(matrix, settings.num_ns_steps).float() * scale


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """Return U V^T of a matrix U S V^T but for singular values, which lie around 1; same shape and type.

    Source: Keller Jordan's Muon, https://kellerjordan.github.io/posts/muon, with its coefficients.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def scale_of(shape: torch.Size, mode: str) -> float:
    """Return what the orthogonalised update of an out x in matrix is multiplied by; the modes are those of `Muon`."""
    rows, columns = shape
    if mode == "spectral":
        return math.sqrt(max(rows, columns))
    return math.sqrt(rows / columns if mode == "unit_rms_norm" else max(1.0, rows / columns))


def parts_of(share: Tensor, matrices: Matrices) -> list[Tensor]:
    """Return the rows of each part, `[rows of the part, columns]`, from the slice of a rank; `joined` undoes it."""
    if not matrices.parts:
        return [share]
    repeated = share.view(-1, sum(matrices.parts), share.size(1))
    return [part.reshape(-1, share.size(1)) for part in repeated.split(matrices.parts, dim=1)]


def joined(parts: Sequence[Tensor], matrices: Matrices) -> Tensor:
    """Return the slice of a rank whose parts are given."""
    if not matrices.parts:
        return parts[0]
    columns = parts[0].size(1)
    repeated = [part.reshape(-1, rows, columns) for part, rows in zip(parts, matrices.parts, strict=True)]
    return torch.cat(repeated, dim=1).view(-1, columns)
