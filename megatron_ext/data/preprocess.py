"""From raw text files to indexed datasets: what tools/preprocess_data.py does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext import log
from megatron_ext.data.encode import EncodeSettings
from megatron_ext.data.indexed import token_dtype
from megatron_ext.data.manifest import DatasetManifest, InputFacts, TokenizerFacts
from megatron_ext.data.outputs import DatasetOutputs
from megatron_ext.data.readers import ReadProgress, expand_inputs, file_size, read_blocks
from megatron_ext.data.records import BadRecord
from megatron_ext.data.reporter import Reporter
from megatron_ext.data.workers import encode_blocks
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.build import build_tokenizer


@dataclass(frozen=True)
class PreprocessRequest:
    """What to read, how to tokenize it, where to write it; the flags of tools/preprocess_data.py."""

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer_type: str
    tokenizer_model: str | None = None
    vocab_size: int | None = None
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    workers: int = 1
    log_interval: int = 1000
    stop_on_error: bool = False
    overwrite: bool = False


def preprocess(request: PreprocessRequest) -> list[DatasetManifest]:
    """Write `PREFIX_KEY_document.{bin,idx,manifest.json}` for each key and return the manifests.

    The files are byte-identical to megatron-core's builder's for the same tokens, for any number of workers. Bad
    records go to `PREFIX.quarantine.jsonl`; texts without a token give no document and are counted as empty.

    Raises:
        DataError: an input cannot be read, an output exists or cannot be written, there is nothing to write, or with
            `stop_on_error` the first bad record.
        TokenizerError: the tokenizer cannot be used.
    """
    _check(request)
    tokenizer = build_tokenizer(request.tokenizer_type, request.tokenizer_model, request.vocab_size)
    paths = expand_inputs(request.inputs)
    settings = EncodeSettings(
        keys=request.json_keys,
        append_eod=request.append_eod,
        dtype=token_dtype(tokenizer.vocab_size).name,
        tokenizer_type=request.tokenizer_type,
        tokenizer_model=request.tokenizer_model,
        vocab_size=request.vocab_size,
        fingerprint=tokenizer.fingerprint,
    )
    _make_folder(Path(request.output_prefix).parent)
    outputs = DatasetOutputs(request.output_prefix, settings, request.overwrite)
    try:
        inputs = _run(request, settings, tokenizer, paths, outputs)
        manifests = outputs.publish(inputs, _facts(request, tokenizer))
    finally:
        outputs.discard()
    for line in summary(manifests, outputs):
        log.info(line)
    return manifests


def summary(manifests: Sequence[DatasetManifest], outputs: DatasetOutputs) -> list[str]:
    """Lines that tell what became of every record."""
    lines = []
    for prefix, manifest in zip(outputs.prefixes, manifests, strict=True):
        counts = manifest.records
        lines.append(
            f"{prefix}: {counts.read} records read = {counts.written} written + {counts.quarantined} quarantined + "
            f"{counts.empty} empty; {manifest.tokens} tokens, largest id {manifest.largest_id}, {manifest.dtype}"
        )
    if outputs.quarantined:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(outputs.quarantined.items()))
        lines.append(f"quarantined records are in {outputs.quarantine_path}: {reasons}")
    return lines


def _check(request: PreprocessRequest) -> None:
    if request.workers < 1:
        raise DataError(f"--workers {request.workers} is not possible", "At least one process does the work")
    if request.log_interval < 1:
        raise DataError(f"--log-interval {request.log_interval} is not possible", "It counts documents, at least 1")
    if len(set(request.json_keys)) < len(request.json_keys):
        raise DataError(f"--json-keys names a key twice: {' '.join(request.json_keys)}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} of --output-prefix cannot be made ({error.strerror})") from None


def _run(
    request: PreprocessRequest,
    settings: EncodeSettings,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    outputs: DatasetOutputs,
) -> list[InputFacts]:
    sizes = [file_size(path) for path in paths]
    progress = ReadProgress()
    blocks = read_blocks(paths, progress)
    encoded = encode_blocks(blocks, settings, tokenizer, request.workers)
    reporter = Reporter(None if None in sizes else sum(size or 0 for size in sizes), request.log_interval)
    try:
        for block in encoded:
            if request.stop_on_error and block.bad:
                raise _first_bad(block.bad[0], paths)
            outputs.add(block, paths)
            reporter.update(outputs.num_read, progress.raw_bytes, progress.text_bytes, outputs.num_tokens)
    finally:
        reporter.close()
    for path, size in zip(paths, sizes, strict=True):
        if size != file_size(path):
            log.warn(f"{path} changed its size while it was read; the dataset holds what was there at that time")
    return [InputFacts(str(path), sizes[index], progress.lines[index]) for index, path in enumerate(paths)]


def _facts(request: PreprocessRequest, tokenizer: Tokenizer) -> TokenizerFacts:
    return TokenizerFacts(
        type=request.tokenizer_type,
        model=request.tokenizer_model,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
    )


def _first_bad(record: BadRecord, paths: Sequence[Path]) -> DataError:
    return DataError(
        f"line {record.line} of {paths[record.file_index]} is bad: {record.reason} ({record.detail})",
        "--on-error stop refuses the first bad record; nothing was written",
        "Mend the line, or leave --on-error at quarantine",
    )
