"""One preprocessing run on many machines: its shards as tasks of a Ray cluster, then joined."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from megatron_ext import log
from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.sources.shards import Shard
from megatron_ext.data.store.dataset_names import shards_by_key
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.data.store.merge import MergeRequest, merge_datasets
from megatron_ext.errors import DataError, MegatronExtError

MOST_RETRIES = 5
"""How often a shard whose machine or process dies is begun again; it goes on from what its journal says."""


def preprocess_on_ray(
    request: PreprocessRequest, num_shards: int | None, address: str | None = None
) -> list[DatasetManifest]:
    """Run the shards of a request as Ray tasks, join them, and return the manifests of the whole, one per key.

    Every machine must see the inputs, the tokenizer and the outputs under the same paths. The result has the bytes of
    one local run. A shard whose process dies is started again and resumes from its journal.

    Args:
        request: what to do, without a shard; each task uses `request.workers` CPUs.
        num_shards: how many parts; None takes the cluster's CPUs divided by `request.workers`.
        address: the cluster's; None starts one on this machine.

    Raises:
        DataError: Ray is not installed, the request is a shard already, or a shard fails.
    """
    ray = _ray()
    if request.shard is not None:
        raise DataError("--shard and --executor ray are given together", "Ray makes the shards", "Leave --shard out")
    if num_shards is not None and num_shards < 1:
        raise DataError(f"--num-shards {num_shards} is not possible", "At least one shard does the work")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        count = num_shards or max(1, cpus // request.workers)
        log.info(f"{count} shards on {len(ray.nodes())} machines with {cpus} CPUs")
        task = ray.remote(num_cpus=request.workers, max_retries=MOST_RETRIES)(_preprocess_shard)
        # a task that is started again finds the journal of the one that died, and so always resumes
        shards = [dataclasses.replace(request, shard=Shard(index, count), resume=True) for index in range(count)]
        _wait(ray, {task.remote(shard): shard.shard.index for shard in shards if shard.shard})
    finally:
        if started_here:
            ray.shutdown()
    return _join(request)


def _preprocess_shard(request: PreprocessRequest) -> str | None:
    """The work of one task: None, or what the user has to mend (an exception of ours would come back wrapped)."""
    try:
        preprocess(request)
    except MegatronExtError as error:
        return str(error)
    return None


def _wait(ray: Any, tasks: dict[Any, int]) -> None:
    total, running = len(tasks), list(tasks)
    while running:
        done, running = ray.wait(running, num_returns=1)
        for task in done:
            try:
                failure = ray.get(task)
            except ray.exceptions.RayError as error:
                failure = f"its process died {MOST_RETRIES + 1} times ({str(error).splitlines()[0]})"
            if failure:
                raise DataError(f"shard {tasks[task]} of {total} failed: {failure}")
        log.info(f"{total - len(running)} of {total} shards are done")


def _join(request: PreprocessRequest) -> list[DatasetManifest]:
    manifests = []
    for key, prefixes in shards_by_key(request.output_prefix).items():
        result = merge_datasets(
            MergeRequest(tuple(prefixes), f"{request.output_prefix}_{key}_document", request.overwrite)
        )
        assert result.manifest is not None, "every shard has a manifest"
        manifests.append(result.manifest)
    return manifests


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise DataError(
            "--executor ray needs the package ray, which is not installed",
            fix="Install it with: pip install -r requirements/ray.txt, or divide the work yourself with --shard I/N",
        )
    import ray

    return ray
