"""From finished datasets to a dataset of blocks: what tools/pack_dataset.py does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_ext import log
from megatron_ext.data.packing.buckets import plan_buckets, waste
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.overlap import plan_overlap
from megatron_ext.data.packing.packed_outputs import (
    PackedOutputs,
    dropped_path,
    refuse_existing,
    refuse_input_as_output,
)
from megatron_ext.data.packing.plan import PackPlan
from megatron_ext.data.packing.settings import (
    BUCKETS,
    FIRST_FIT,
    OVERLAP,
    STREAM,
    PackSettings,
    check_settings,
)
from megatron_ext.data.packing.stream import plan_stream
from megatron_ext.data.packing.telechat import plan_first_fit
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import DataError

_PLANNERS: dict[str, Callable[[JoinedDatasets, PackSettings], PackPlan]] = {
    OVERLAP: plan_overlap,
    FIRST_FIT: plan_first_fit,
    BUCKETS: plan_buckets,
    STREAM: plan_stream,
}


def pack(settings: PackSettings) -> dict[str, DatasetManifest]:
    """Write the packed datasets; the manifest of each by its prefix.

    Every block is one document of the output; `--dataset-packing documents` reads it as one sample. The result
    depends on the inputs, the settings and the seed alone.

    Raises:
        ConfigError: settings contradict their method or each other.
        DataError: an input cannot be packed, an output exists or cannot be written, or no block comes out.
    """
    check_settings(settings)
    suffixes = [f"_{size}" for size in settings.bucket_sizes] if settings.bucket_sizes else [""]
    refuse_input_as_output(settings.output_prefix, suffixes, settings.inputs)
    refuse_existing(settings.output_prefix, suffixes, settings.overwrite)
    joined = JoinedDatasets(settings.inputs)
    log.info(f"{joined.num_documents} documents of {joined.num_tokens} tokens to pack with {settings.method}")
    plan = _PLANNERS[settings.method](joined, settings)
    _make_folder(Path(settings.output_prefix).parent)
    outputs = PackedOutputs(settings.output_prefix, joined, plan)
    try:
        outputs.write()
        manifests = outputs.publish()
    finally:
        outputs.discard()
    for line in summary(settings.output_prefix, plan, manifests):
        log.info(line)
    _warn_of_blocks_without_labels(manifests)
    return manifests


def summary(output_prefix: str, plan: PackPlan, manifests: dict[str, DatasetManifest]) -> list[str]:
    """Lines that tell what became of every document and every token."""
    lines = [line for prefix, manifest in manifests.items() for line in _table(prefix, manifest)]
    if len(manifests) > 1:
        written = sum(part.num_tokens for part in plan.parts)
        room = sum(part.num_blocks * part.seq_length for part in plan.parts)
        plain = sum(len(part.starts) for part in plan.parts) * plan.parts[-1].seq_length
        lines.append(
            f"all buckets: {written:,} tokens; padding would be {waste(written, room):.1%} of what is trained on, "
            f"{waste(written, plain):.1%} with each document padded to {plan.parts[-1].seq_length}"
        )
    if len(plan.listed):
        lines.append(f"{len(plan.listed)} documents dropped ({plan.listed_reason}): {dropped_path(output_prefix)}")
    return lines


def _table(prefix: str, manifest: DatasetManifest) -> list[str]:
    tokens, counts, seq_length = manifest.rows["tokens"], manifest.records, manifest.rows["seq_length"]
    rows = [(" ", "tokens read", tokens["read"])]
    rows += [("+", "repeated", tokens["repeated"]), ("+", "padding", tokens["padding"])]
    rows += [("-", f"dropped: {reason}", number) for reason, number in tokens["dropped"].items()]
    rows += [("=", "tokens written", tokens["written"])]
    short = waste(tokens["written"] - tokens["padding"], manifest.documents * seq_length)
    return [
        f"{prefix}: {manifest.documents:,} blocks of at most {seq_length} tokens, {short:.1%} of their room is padding",
        *(f"  {sign} {name:<36} {number:>18,}" for sign, name, number in rows),
        f"    {'of these learned':<36} {tokens['learned']:>18,}",
        f"  {counts.read} documents read = {counts.written} written + {counts.quarantined} set aside + "
        f"{counts.empty} empty",
    ]


def _warn_of_blocks_without_labels(manifests: dict[str, DatasetManifest]) -> None:
    for prefix, manifest in manifests.items():
        number = manifest.rows["blocks_without_labels"]
        if number:
            log.warn(f"nothing is learned in {number} of {manifest.documents} blocks of {prefix}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} of --output-prefix cannot be made ({error.strerror})") from None
