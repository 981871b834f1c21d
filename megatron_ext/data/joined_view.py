"""Several datasets under one order: their samples are numbered one dataset after the other, and mixed by an order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.views import OrderedView, RowsToFill, TokenRange, require_existing
from megatron_ext.native_numpy import Int64Array


@dataclass(frozen=True)
class JoinedTarget(OrderTarget):
    """What sample ids mean over several datasets: those of the first, then those of the second, and so on.

    Attributes:
        parts: what the ids of each dataset mean, counted from 0.
    """

    parts: tuple[OrderTarget, ...] = ()

    def difference(self, said: Mapping[str, Any]) -> tuple[str, object, object] | None:
        """What `said` of an order file differs in first: its name, its value there, its value here."""
        for name in ("seq_length", "packing"):
            if said.get(name) != getattr(self, name):
                return name, said.get(name), getattr(self, name)
        parts = said.get("parts") or [said]
        if not isinstance(parts, list) or len(parts) != len(self.parts):
            return "number of datasets", len(parts) if isinstance(parts, list) else "unreadable", len(self.parts)
        for number, (part, told) in enumerate(zip(self.parts, parts, strict=True), 1):
            different = part.difference(told if isinstance(told, dict) else {})
            if different is not None:
                name, found, wanted = different
                what = "identity" if name == "dataset" else name
                return f"{what} of dataset {number} of {len(parts)}", found, wanted
        return super().difference({name: value for name, value in said.items() if name != "parts"})


def joined_target(targets: Sequence[OrderTarget]) -> OrderTarget:
    """What sample ids mean when these datasets are laid end to end; one alone keeps its meaning.

    Args:
        targets: at least one, all of one sequence length and packing.
    """
    if len(targets) == 1:
        return targets[0]
    lines = [f"{t.dataset} {t.first_sequence} {t.last_sequence} {t.num_samples}\n" for t in targets]
    return JoinedTarget(
        dataset=f"joined-{hashlib.sha256(''.join(lines).encode('utf-8')).hexdigest()}",
        first_sequence=0,
        last_sequence=sum(target.last_sequence - target.first_sequence for target in targets),
        seq_length=targets[0].seq_length,
        num_samples=sum(target.num_samples for target in targets),
        packing=targets[0].packing,
        parts=tuple(targets),
    )


class JoinedView(OrderedView):
    """Views laid end to end: a sample id is the number of samples in the views before, plus the view's own id.

    Args:
        views: at least one, of one sequence length; their own orders are not asked.
    """

    def __init__(self, views: Sequence[OrderedView]) -> None:
        self._views = list(views)
        self._starts = np.cumsum([0, *map(len, views)], dtype=np.int64)
        self.seq_length = views[0].seq_length
        self.num_tokens = sum(view.num_tokens for view in views)
        self.remainder_tokens = sum(view.remainder_tokens for view in views)
        self.has_loss_mask = any(view.has_loss_mask for view in views)
        self.source_names = tuple(view.source_names[0] for view in views)
        self.stores = tuple(store for view in views for store in view.stores)

    @property
    def target(self) -> OrderTarget:
        """What an order file for this view is made for."""
        return joined_target([view.target for view in self._views])

    def __len__(self) -> int:
        """Samples of all datasets together."""
        return int(self._starts[-1])

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]`; None when all of them are."""
        view, local = self._located(sample_id)
        return view.loss_mask(local)

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples to chosen rows of a batch, those of one dataset together."""
        require_existing(sample_ids, len(self))
        sources = self.sources_of(sample_ids)
        for source in np.unique(sources).tolist():
            here = sources == source
            local = sample_ids[here] - self._starts[source]
            self._views[source].read_into(local, RowsToFill(batch.rows[here], batch.tokens, batch.mask))

    def sources_of(self, sample_ids: Int64Array) -> Int64Array:
        """Which of `source_names` each sample comes from, int64 `[b]`."""
        return np.searchsorted(self._starts, sample_ids, side="right") - 1

    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data."""
        view, local = self._located(sample_id)
        return view.token_ranges(local)

    def _located(self, sample_id: int) -> tuple[OrderedView, int]:
        sample = np.array([sample_id], np.int64)
        require_existing(sample, len(self))
        source = int(self.sources_of(sample)[0])
        return self._views[source], int(sample_id) - int(self._starts[source])
