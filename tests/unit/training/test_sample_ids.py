"""The ids that ranks read are put together to the global batch, for any layout of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.loader import LoaderConfig, MicroBatches
from megatron_ext.data.sampler import micro_batch_ids
from megatron_ext.training.sample_ids import StepSamples, global_batch
from tests.unit.tiny import TokenView


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_it_undoes_the_sampler(micro_batch: int, ranks: int, micro_batches: int, consecutive: bool):
    ids = np.arange(micro_batch * ranks * micro_batches) + 7
    of_rank = [
        [m.tolist() for m in micro_batch_ids(ids, micro_batch, rank, ranks, consecutive)] for rank in range(ranks)
    ]
    assert global_batch(of_rank, consecutive) == ids.tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("micro_batch", "ranks"), [(1, 1), (2, 2), (4, 1)])
def test_what_is_recorded_is_what_was_read_not_what_was_read_ahead(workers: int, micro_batch: int, ranks: int):
    view, per_rank = TokenView(), []
    for rank in range(ranks):
        samples = StepSamples()
        config = LoaderConfig(micro_batch, rank, ranks, num_workers=workers, record=samples.record)
        batches = MicroBatches(view, 4, lambda _: 8, config)
        for _ in range(8 // micro_batch // ranks):
            batch = next(batches)
            assert (batch["tokens"].numpy() == view.tokens[samples._micro_batches[-1], :-1]).all()
        batches.close()
        per_rank.append(samples._micro_batches)
    assert global_batch(per_rank) == view.sample_ids(4, 8).tolist()
