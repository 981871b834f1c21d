"""Which datasets may be joined, in which order, and what the manifest of the joined one says."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import megatron_ext
from megatron_ext.data.store.indexed import IndexedDataset, idx_path
from megatron_ext.data.store.manifest import Counts, DatasetManifest, FileFacts, InputFacts
from megatron_ext.errors import DataError

_SETTINGS: dict[str, Callable[[DatasetManifest], Any]] = {
    "tool version": lambda manifest: manifest.tool_version,
    "key": lambda manifest: manifest.key,
    "append_eod": lambda manifest: manifest.append_eod,
    "tokenizer": lambda manifest: dataclasses.replace(manifest.tokenizer, model=None),  # each machine has its own path
    "rows": lambda manifest: manifest.rows,
}


def open_parts(prefixes: Sequence[str], output_prefix: str) -> list[IndexedDataset]:
    """The datasets to join, in order: shards of one run by their number, others as they were named.

    Raises:
        DataError: one of them is damaged, is named twice, is the output itself, or does not fit the others.
    """
    _refuse_repetitions(prefixes, output_prefix)
    parts = [IndexedDataset(prefix) for prefix in prefixes]
    for part in parts:
        part.check_structure()
    _refuse_other_type(parts)
    manifests = [part.manifest for part in parts if part.manifest is not None]
    if manifests and len(manifests) < len(parts):
        without = next(part.prefix for part in parts if part.manifest is None)
        raise DataError(
            f"{without} has no manifest, other parts have one",
            "Without it nothing says that its ids belong to the same tokenizer",
            "Join only datasets with manifests, or only datasets without",
        )
    if any(manifest.shard is not None for manifest in manifests):
        return _shards_in_order(parts)
    _refuse_other_tokenizer(parts)
    return parts


def are_shards(manifests: Sequence[DatasetManifest]) -> bool:
    """Whether `open_parts` found the shards of one run."""
    return bool(manifests) and manifests[0].shard is not None


def joined_manifest(manifests: Sequence[DatasetManifest], files: dict[str, FileFacts]) -> DatasetManifest:
    """What the joined dataset is; of all shards of a run, what one run would have written.

    Args:
        manifests: of the parts, in order.
        files: suffix -> facts of each joined file.
    """
    of_one_run, first = are_shards(manifests), manifests[0]
    return DatasetManifest(
        tool_version=first.tool_version if of_one_run else megatron_ext.__version__,
        key="+".join(dict.fromkeys(manifest.key for manifest in manifests)),
        dtype=first.dtype,
        append_eod=all(manifest.append_eod for manifest in manifests),
        documents=sum(manifest.documents for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        largest_id=max(manifest.largest_id for manifest in manifests),
        tokenizer=first.tokenizer,
        records=_joined_counts([manifest.records for manifest in manifests]),
        quarantined_by_reason=_joined_reasons(manifests),
        inputs=_whole_inputs(manifests) if of_one_run else [entry for each in manifests for entry in each.inputs],
        bin_file=files[".bin"],
        idx_file=files[".idx"],
        rows=_joined_rows([manifest.rows for manifest in manifests]),
        loss_mask_file=files.get(".loss_mask"),
    )


def _refuse_repetitions(prefixes: Sequence[str], output_prefix: str) -> None:
    output, seen = idx_path(output_prefix).resolve(), set()
    for prefix in prefixes:
        real = idx_path(prefix).resolve()
        if real == output:
            raise DataError(f"{prefix} is an input and the output", fix="Choose another --output-prefix")
        if real in seen:
            raise DataError(f"--input names {prefix} twice", "Its documents would be there twice", "Name it once")
        seen.add(real)


def _refuse_other_type(parts: Sequence[IndexedDataset]) -> None:
    for part in parts:
        if part.dtype != parts[0].dtype:
            raise DataError(
                f"{part.prefix} holds {part.dtype} tokens, {parts[0].prefix} holds {parts[0].dtype}",
                "A dataset has one type; it follows from the size of the tokenizer's vocabulary",
                "Join datasets of one tokenizer",
            )


def _refuse_other_tokenizer(parts: Sequence[IndexedDataset]) -> None:
    first = parts[0].manifest
    for part in parts:
        if part.manifest is None or first is None:
            continue
        said, found = first.tokenizer, part.manifest.tokenizer
        if (said.fingerprint, said.vocab_size, said.eod_id) != (found.fingerprint, found.vocab_size, found.eod_id):
            raise DataError(
                f"{part.prefix} was made with the {found.type} of fingerprint {found.fingerprint}",
                f"{parts[0].prefix} was made with the {said.type} of fingerprint {said.fingerprint}",
                "Ids of different tokenizers cannot be mixed: tokenize one of the two again",
            )


def _shards_in_order(parts: Sequence[IndexedDataset]) -> list[IndexedDataset]:
    by_number: dict[int, IndexedDataset] = {}
    first = _shard_manifest(parts[0])
    count = _shard_of(first)[1]
    for part in parts:
        manifest = _shard_manifest(part)
        for name, value_in in _SETTINGS.items():
            if value_in(manifest) != value_in(first):
                raise DataError(
                    f"{part.prefix} was made with {name} {value_in(manifest)}",
                    f"{parts[0].prefix} was made with {name} {value_in(first)}",
                    "Shards of one run have equal settings: make the differing ones again",
                )
        index, own_count = _shard_of(manifest)
        if own_count != count:
            raise DataError(
                f"{part.prefix} is one of {own_count} shards, {parts[0].prefix} one of {count}",
                fix="Give the shards of one run",
            )
        if index in by_number:
            raise DataError(f"{part.prefix} and {by_number[index].prefix} are both shard {index} of {count}")
        by_number[index] = part
    missing = [str(index) for index in range(count) if index not in by_number]
    if missing:
        raise DataError(
            f"shard {', '.join(missing)} of {count} is missing",
            f"All shards from 0 to {count - 1} make up the dataset",
            "Make it with tools/preprocess_data.py --shard, or check the pattern of --input",
        )
    _refuse_unequal_masks(parts)
    return [by_number[index] for index in range(count)]


def _shard_manifest(part: IndexedDataset) -> DatasetManifest:
    if part.manifest is None or part.manifest.shard is None:
        raise DataError(
            f"{part.prefix} is not a shard, other parts are",
            "The shards of a run have to be joined with each other first",
            "Join them alone, then join the result with the others",
        )
    return part.manifest


def _shard_of(manifest: DatasetManifest) -> tuple[int, int]:
    index, count = manifest.shard or (0, 1)
    return index, count


def _refuse_unequal_masks(parts: Sequence[IndexedDataset]) -> None:
    with_mask = [part.prefix for part in parts if part.loss_mask is not None]
    if with_mask and len(with_mask) < len(parts):
        raise DataError(f"{with_mask[0]} has a loss mask, other shards of the run have none")


def _joined_counts(counts: Sequence[Counts]) -> Counts:
    return Counts(
        read=sum(each.read for each in counts),
        written=sum(each.written for each in counts),
        quarantined=sum(each.quarantined for each in counts),
        empty=sum(each.empty for each in counts),
    )


def _joined_reasons(manifests: Sequence[DatasetManifest]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for manifest in manifests:
        total.update(manifest.quarantined_by_reason)
    return dict(sorted(total.items()))


def _whole_inputs(manifests: Sequence[DatasetManifest]) -> list[InputFacts]:
    """The inputs of the whole run: a file that was cut between shards is one, its records added up."""
    whole: dict[str, InputFacts] = {}
    for manifest in manifests:
        for entry in manifest.inputs:
            known = whole.get(entry.path, InputFacts(entry.path, entry.size_bytes, 0))
            if known.size_bytes != entry.size_bytes:
                raise DataError(
                    f"the input {entry.path} had {known.size_bytes} bytes for a shard, {entry.size_bytes} for another",
                    "The shards of a run are cut from the same files",
                    "Make all shards again from one version of it",
                )
            whole[entry.path] = InputFacts(entry.path, entry.size_bytes, known.records + entry.records)
    return list(whole.values())


def _joined_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Settings of how records became documents; where the parts differ, the values of all parts in order."""
    names = dict.fromkeys(name for each in rows for name in each)
    values = {name: [each.get(name) for each in rows] for name in names}
    return {name: each[0] if all(value == each[0] for value in each) else each for name, each in values.items()}
