"""One preprocessing run on many machines: its shards as tasks of a Ray cluster, then joined.

Ray itself listens on all addresses of its machines, so it belongs into a network that is trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ext import log
from megatron_ext.data.preprocessing.preprocess import (
    PreprocessRequest,
    finished_job,
    prepare,
    preprocess,
    shard_prefix,
)
from megatron_ext.data.preprocessing.run_journal import refuse_loss
from megatron_ext.data.preprocessing.summary import summary_lines
from megatron_ext.data.sources.shards import Shard
from megatron_ext.data.store.manifest import DatasetManifest, read_manifest
from megatron_ext.data.store.merge import MergeRequest, merge_datasets
from megatron_ext.errors import DataError, MegatronExtError

MOST_RETRIES = 5
"""How often a shard whose machine or process dies is begun again; it goes on from what its journal says."""

CANCEL_SECONDS = 30.0
"""How long the other shards are waited for after one has failed: they are killed, but not at once."""


def preprocess_on_ray(
    request: PreprocessRequest, num_shards: int | None, address: str | None = None
) -> list[DatasetManifest]:
    """Run the shards of a request as Ray tasks, join them, and return the manifests of the whole, one per key.

    Every machine must see the inputs, the tokenizer, the outputs and the current folder under the same paths. The
    result has the bytes of one local run; the shards are removed when it is whole. A shard whose process dies is
    started again and resumes from its journal, and a run that fails leaves what is done for `resume`.

    Args:
        request: what to do, without a shard; each task uses `request.workers` CPUs.
        num_shards: how many parts; None takes the cluster's CPUs divided by `request.workers`.
        address: the cluster's; None starts one on this machine.

    Raises:
        DataError: Ray is not installed or not reachable, the request is a shard already, the cluster has no machine
            for it, or a shard fails.
    """
    if request.shard is not None:
        raise DataError("--shard and --executor ray are given together", "Ray makes the shards", "Leave --shard out")
    if num_shards is not None and num_shards < 1:
        raise DataError(f"--num-shards {num_shards} is not possible", "At least one shard does the work")
    ray = _ray()
    job = prepare(request)
    if request.resume and (finished := finished_job(job)):
        log.info(f"{request.output_prefix} is complete already: nothing is left to resume")
        return finished
    left = _shards_left(request.output_prefix)
    if not request.overwrite and not (request.resume and left):
        refuse_loss(job.layout)
    with _connected(ray, address):
        count = _count(ray, request, num_shards)
        shards = [Shard(index, count) for index in range(count)]
        _take_or_refuse(left, request, count)
        _run(ray, request, shards)
    manifests = _join(request, shards, job.layout.keys)
    for path in _shards_left(request.output_prefix):
        path.unlink()
    for line in summary_lines(job.layout, manifests):
        log.info(line)
    return manifests


def _shards_left(output_prefix: str) -> list[Path]:
    """The files of all shards of this output that exist, finished or not."""
    pattern = f"{glob.escape(output_prefix)}.shard-[0-9]*-of-[0-9]*"
    return [Path(match) for match in sorted(glob.glob(pattern))]


def _take_or_refuse(left: Sequence[Path], request: PreprocessRequest, count: int) -> None:
    """See that of the shards of an earlier run only those remain that this one goes on with."""
    if not left:
        return
    if request.resume:
        others = [path for path in left if f"-of-{count}_" not in path.name and f"-of-{count}." not in path.name]
        if others:
            raise DataError(
                f"--resume finds {others[0]}, which is not one of {count} shards",
                "A run goes on with as many shards as it began with",
                "Give that number with --num-shards, or begin anew with --overwrite in place of --resume",
            )
        return
    if not request.overwrite:
        raise DataError(
            f"{left[0]} is part of an earlier run",
            "Beginning anew would lose its work",
            "Give --resume to go on from there, or --overwrite to begin anew",
        )
    for path in left:
        path.unlink()


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local",  # else Ray looks for a cluster by itself
            log_to_driver=False,
            logging_level=logging.WARNING,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the Ray cluster {address or 'on this machine'} cannot be used ({' '.join(str(error).split())})",
            fix="Check --ray-address, and that `ray start` was called there",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _count(ray: Any, request: PreprocessRequest, num_shards: int | None) -> int:
    """The number of shards; refuses what would wait for ever."""
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    if max(machines, default=0) < request.workers:
        raise DataError(
            f"--workers {request.workers} finds no machine: the largest of the Ray cluster has "
            f"{int(max(machines, default=0))} CPUs",
            "A shard runs on one machine and has a CPU for each worker",
            "Give fewer --workers; more shards use the other CPUs",
        )
    count = num_shards or sum(int(cpus) // request.workers for cpus in machines)
    log.info(f"{count} shards on {len(machines)} machines with {int(sum(machines))} CPUs")
    return count


def _run(ray: Any, request: PreprocessRequest, shards: Sequence[Shard]) -> None:
    task = ray.remote(num_cpus=request.workers, max_retries=MOST_RETRIES)(_preprocess_shard)
    names = {}
    for shard in shards:
        # a task that is started again finds the journal of the one that died, and so always resumes
        part = dataclasses.replace(request, shard=shard, resume=True)
        names[task.remote(part, os.getcwd())] = f"shard {shard.index} of {shard.count}"
    running = list(names)
    try:
        while running:
            (done,), running = ray.wait(running, num_returns=1)
            if failure := _failure(ray, done):
                raise DataError(f"{names[done]} failed: {failure}", fix="When that is mended, --resume goes on")
            log.info(f"{len(names) - len(running)} of {len(names)} shards are done")
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            for other in running:
                ray.cancel(other, force=True)
            if running:  # whoever begins anew, or tidies up, must not meet them
                ray.wait(running, num_returns=len(running), timeout=CANCEL_SECONDS)


def _preprocess_shard(request: PreprocessRequest, folder: str) -> str | None:
    """The work of one task: None, or what the user has to mend (an exception of ours would come back wrapped)."""
    try:
        with contextlib.chdir(folder):
            preprocess(request)
    except MegatronExtError as error:
        return str(error)
    return None


def _failure(ray: Any, task: Any) -> str | None:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError:  # a bug of ours keeps its traceback
        raise
    except ray.exceptions.RayError as error:
        return f"its process died {MOST_RETRIES + 1} times ({' '.join(str(error).split())[:300]})."


def _join(request: PreprocessRequest, shards: Sequence[Shard], keys: Sequence[str]) -> list[DatasetManifest]:
    prefixes = {
        key: tuple(f"{shard_prefix(request.output_prefix, shard)}_{key}_document" for shard in shards) for key in keys
    }
    found = [read_manifest(part) for parts in prefixes.values() for part in parts]
    if not any(manifest.documents for manifest in found if manifest is not None):
        raise DataError(
            "no document was found in any shard",
            "All records were quarantined, or have no text",
            f"See {request.output_prefix}.shard-*.quarantine.jsonl, and check --input and --json-keys",
        )
    manifests = []
    for key, parts in prefixes.items():
        # what exists was asked for to be replaced, or is left of a joining that was cut short
        result = merge_datasets(MergeRequest(parts, f"{request.output_prefix}_{key}_document", overwrite=True))
        assert result.manifest is not None, "every shard has a manifest"
        manifests.append(result.manifest)
    return manifests


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise DataError(
            "--executor ray needs the package ray, which is not installed",
            fix="Install it with: pip install -r requirements/ray.txt, or divide the work yourself with --shard I/N",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: nothing is told to anybody
    import ray

    return ray
