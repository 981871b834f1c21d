"""The path of a GPU, executed without one: a training step of each architecture family as ranks of 1 to 1024.

What runs is the project's own: CudaPlatform, start_world, the builder, the readers, train_step. FakeTensorMode
refuses any operation that mixes devices; the collectives of each step are held to counts that are derived here from
the layout. Left out: kernels, numbers, and the order in which ranks meet in a collective.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.model.counts import padded_vocab_size, parameter_counts
from megatron_ext.parallel.grid import Grid
from tests.unit.training.gpu_cases import CASES, VOCAB_SIZE, Case

Counts = Counter[tuple[str, str]]


@pytest.fixture(scope="module")
def happened(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case did, from one process for all of them."""
    report = tmp_path_factory.mktemp("gpu_path") / "report.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.training.gpu_path_worker", str(report)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo_root, env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(report.read_text())


class Place:
    """Where a case's rank stands in its run, and how much of the model it holds."""

    def __init__(self, case: Case) -> None:
        self.run: RunConfig = case.run()
        parallel, model = self.run.parallel, self.run.model
        self.tp, self.pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        self.cp = parallel.context_parallel_size
        stage = Grid.of_world(self.run.world_size, self.tp, self.pp, self.cp).coordinates(case.rank).pp_rank
        self.first, self.last = stage == 0, stage == self.pp - 1
        self.chunks = self.run.virtual_pipeline_model_parallel_size or 1
        self.layers, self.micro_batches = self.run.layers_per_stage[stage], self.run.num_microbatches
        self.tied = not model.untie_embeddings_and_output_weights
        self.filtered, self.shares_heads = model.localized_filtering, model.query_groups < self.tp
        self.reducing = self.run.data_parallel_size * self.cp
        """Ranks that sum their gradients: all with the same weights, whether their samples or their tokens differ."""

    @property
    def parameters(self) -> int:
        """Of this rank: what tensor parallelism cuts is a tp-th part, norms and the biases of rows are whole."""
        model, rows = self.run.model, padded_vocab_size(self.run, VOCAB_SIZE)
        counts = parameter_counts(model, rows, self.run.max_position_embeddings)
        _, output_bias, _, down_bias = model.biased_projections
        whole = (output_bias + down_bias) * (model.hidden_size or 0)
        # the filter's second convolution and its norm
        whole += 2 * self.filtered * (model.hidden_size or 0)
        layer = (counts.attention + counts.mlp - whole) // self.tp + whole + counts.layer_norms
        begin = counts.word_embedding // self.tp + counts.position_embedding + counts.embedding_norm
        # the last stage has a copy of tied embeddings, unless it is the first as well
        head = counts.output_layer or (0 if self.first else counts.word_embedding)
        return self.layers * layer + self.first * begin + self.last * (counts.final_norm + head // self.tp)


def expected(place: Place, buckets: int) -> Counts:
    """Collectives of one step of this rank, from the layout.

    Sources: arXiv:1909.08053, section 3 (f and g: an all-reduce each way around attention and feed-forward);
    arXiv:2205.05198, section 4.2 (all-gather and reduce-scatter in their place, and the gathered input of a product is
    gathered once more for the gradient of its weight); arXiv:2104.04473, section 2.2 (1F1B, interleaved).
    """
    # per step: tokens and losses over dp, tokens over pp, the gradient's norm over all that hold parts of it
    sharded = place.run.parallel.use_distributed_optimizer
    counts: Counts = Counter({("dp", "all_reduce"): 2, ("pp", "broadcast"): 1})
    counts["pp", "broadcast"] += place.pp > 1
    counts["instance" if sharded else "model", "all_reduce"] += 1
    # where data-parallel ranks hold copies, they make sure that all copies are finite
    counts["world", "all_reduce"] += copies(place)
    counts["dp", "reduce_scatter" if sharded else "all_reduce"] += buckets
    counts["dp", "all_gather"] += buckets if sharded else 0
    counts["embedding", "all_reduce"] += place.tied and place.pp > 1 and (place.first or place.last)
    counts += tensor_parallel(place) if place.tp > 1 else Counter()
    counts += context_parallel(place) if place.cp > 1 else Counter()
    # every chunk but the model's first receives an activation and sends a gradient; every chunk but its last the rest
    moves = place.micro_batches * (2 * place.chunks - place.first - place.last)
    return +(counts + Counter({("pp", "send"): moves, ("pp", "recv"): moves}))


def copies(place: Place) -> bool:
    """Whether other ranks hold the same reduced gradients."""
    return place.reducing > 1 and not place.run.parallel.use_distributed_optimizer


def tensor_parallel(place: Place) -> Counts:
    """The part of a tensor-parallel group with more than one rank."""
    layers, first, last = place.layers, place.first, place.last
    counts: Counts = Counter()
    # the largest logit; the label's logit and the sum of exponentials
    counts["tp", "all_reduce"] += 2 * last
    # where ranks share a key/value head, the projections of all ranks are gathered
    for operation in ("all_gather", "reduce_scatter"):
        counts["tp", operation] += layers * place.shares_heads
    if not place.run.parallel.sequence_parallel:
        # forward: attention, feed-forward, embedding; backward: both again, output layer
        counts["tp", "all_reduce"] += 4 * layers + first + last
        # filter: what its second product sums, and the gradients of its first one's input and of the values' input
        counts["tp", "all_reduce"] += 3 * layers * place.filtered
        return scaled(counts, place.micro_batches)
    learned = place.run.model.position_embedding_type == "learned_absolute"
    # the output layer, whose loss computes the weight's gradient at once, gathers its input once
    counts["tp", "all_gather"] += (2 + 4) * layers + first + last
    counts["tp", "reduce_scatter"] += (2 + 2) * layers + (first and not learned) + last
    # filter: two more products whose input is gathered, both ways, and one whose output is scattered
    counts["tp", "all_gather"] += (2 + 3) * layers * place.filtered
    counts["tp", "reduce_scatter"] += (1 + 2) * layers * place.filtered
    # learned positions are added to the whole sequence, which is cut afterwards
    counts["tp", "all_reduce"] += first and learned
    # once per step, the gradients of the norms, each of which saw a part of the sequence
    return scaled(counts, place.micro_batches) + Counter({("tp", "all_reduce"): 1})


def context_parallel(place: Place) -> Counts:
    """The part of the ranks that share sequences: keys and values, and a token before each chunk for a convolution."""
    gathered = place.layers * (1 + 2 * place.filtered)
    # selective recomputation gathers keys and values again, and keeps none of them for the backward pass
    again = place.layers * (place.run.train.recompute_granularity == "selective")
    return scaled(
        Counter({("cp", "all_gather"): gathered + again, ("cp", "reduce_scatter"): gathered}), place.micro_batches
    )


def scaled(counts: Counts, factor: int) -> Counts:
    """`counts` times `factor`."""
    return Counter({name: count * factor for name, count in counts.items()})


def buckets_of(place: Place, order: list[list[int]]) -> list[list[list[int]]]:
    """The parameters of each bucket of each chunk, in the order of the backward pass, by Megatron-LM's rule.

    A bucket closes once it has `--ddp-bucket-size` elements; only the first stage's first chunk is cut, since its
    reduction alone delays the step. With the distributed optimizer a tied embedding over two stages has a bucket of
    its own.

    Args:
        order: elements of the parameters of each chunk in that order.
    """
    parallel, chunks = place.run.parallel, []
    apart = place.tied and place.pp > 1 and parallel.use_distributed_optimizer
    for index, sizes in enumerate(order):
        limit = (parallel.ddp_bucket_size or 40_000_000) if place.first and index == 0 else float("inf")
        limit = limit if parallel.overlap_grad_reduce else float("inf")
        # backwards, the embedding comes last and the output layer first
        alone = {len(sizes) - 1} if apart and place.first and index == 0 else set()
        alone |= {0} if apart and place.last and index == len(order) - 1 else set()
        buckets: list[list[int]] = [[]]
        for position, size in enumerate(sizes):
            if position in alone and buckets[-1]:
                buckets.append([])
            buckets[-1].append(size)
            if sum(buckets[-1]) >= limit or position in alone:
                buckets.append([])
        chunks.append([bucket for bucket in buckets if bucket])
    return chunks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_makes_the_collectives_of_its_layout(case: Case, happened: dict[str, Any]):
    place, report = Place(case), happened[case.name]
    buckets = sum(map(len, buckets_of(place, report["order"])))
    for step in report["steps"]:
        counts = Counter((entry["group"], entry["operation"]) for entry in step["collectives"])
        assert counts == expected(place, buckets)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_bucket_is_reduced_once_and_holds_every_parameter(case: Case, happened: dict[str, Any]):
    place, report = Place(case), happened[case.name]
    held = [[parameters for _, parameters in chunk] for chunk in report["buckets"]]
    assert held == buckets_of(place, report["order"])
    sizes = [size for chunk in report["buckets"] for size, _ in chunk]
    sharded = place.run.parallel.use_distributed_optimizer
    for step in report["steps"]:
        reduced = [
            entry["elements"]
            for entry in step["collectives"]
            if entry["group"] == "dp" and entry["elements"] > 3 and entry["operation"] != "all_gather"
        ]
        gathered = [
            entry for entry in step["collectives"] if (entry["group"], entry["operation"]) == ("dp", "all_gather")
        ]
        assert sorted(reduced) == sorted(sizes)
        assert sorted(entry["elements"] for entry in gathered) == (sorted(sizes) if sharded else [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_moves_has_the_right_size_and_type_and_is_on_the_device(case: Case, happened: dict[str, Any]):
    place, model = Place(case), case.run().model
    compute = "bfloat16" if place.run.train.bf16 else "float32"
    tokens = (place.run.train.seq_length or 0) // place.cp * (place.run.train.micro_batch_size or 0)
    hidden = tokens * (model.hidden_size or 0)
    projected = tokens * (model.heads + 2 * model.query_groups) * model.head_dim
    whole = {hidden, projected} if place.shares_heads else {hidden}
    part = hidden // place.tp if place.run.parallel.sequence_parallel else hidden
    for step in happened[case.name]["steps"]:
        assert step["finite"] and not step["skipped"]
        assert {entry["device"] for entry in step["collectives"]} == {"cuda"}
        for entry in step["collectives"]:
            kind = entry["group"], entry["operation"]
            if kind in {("pp", "send"), ("pp", "recv")}:
                assert (entry["elements"], entry["dtype"]) == (part, compute)
            elif kind in {("tp", "all_gather"), ("tp", "reduce_scatter")}:
                assert entry["elements"] in whole and entry["dtype"] == compute
            elif kind == ("dp", "reduce_scatter"):
                assert entry["dtype"] == "float32"
            elif kind == ("dp", "all_gather"):
                assert entry["dtype"] == compute


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parameters_gradients_and_state_lie_on_the_device(case: Case, happened: dict[str, Any]):
    place, report = Place(case), happened[case.name]
    compute = "bfloat16" if place.run.train.bf16 else "float32"
    assert report["parameters"] == {"elements": place.parameters, "types": [f"{compute} cuda"]}
    assert report["gradients"] == {"elements": place.parameters, "types": ["float32 cuda"]}
    assert report["shapes_agree"]
    # two moments in fp32; with the distributed optimizer a dp-th part of each bucket, less what is padding
    assert report["state"]["types"] == ["float32 cuda"]
    sizes = [size for chunk in report["buckets"] for size, _ in chunk]
    most = sum(sizes) // place.reducing
    if place.run.parallel.use_distributed_optimizer:
        assert most - (sum(sizes) - place.parameters) <= report["state"]["elements"] // 2 <= most
    else:
        assert report["state"]["elements"] == 2 * place.parameters


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_host_waits_only_for_the_losses_and_the_norm(case: Case, happened: dict[str, Any]):
    """Three numbers of the loss, which a GPU copies at once; the norm; megatron-core's look at the tokens per chunk.

    And whether a copy of the gradients is not finite, where there are copies.
    """
    place = Place(case)
    for step in happened[case.name]["steps"]:
        assert step["host_reads"] == 3 + 1 + place.chunks + copies(place)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_norms_update_and_clipping_are_fused(case: Case, happened: dict[str, Any]):
    operations = set(happened[case.name]["operations"])
    assert operations >= {"aten::_fused_adamw_", "aten::_foreach_norm", "aten::_foreach_mul_"}
    # a build of torch without CUDA has no kernel and shows what its rms_norm is composed of; ours computes in place
    torchs = operations & {"aten::_fused_rms_norm", "aten::rsqrt"}
    assert bool(torchs) == (case.run().model.normalization == "RMSNorm") and "aten::rsqrt_" not in operations


def test_nccl_is_started_with_this_ranks_device(happened: dict[str, Any]):
    for report in happened.values():
        assert (report["backend"], report["device_id"]) == ("nccl", "cuda:0")
