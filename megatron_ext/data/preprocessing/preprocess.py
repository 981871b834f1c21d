"""From raw text files to indexed datasets: what tools/preprocess_data.py does."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext import log
from megatron_ext.data.preprocessing.input_sample import check_on_block, check_on_files
from megatron_ext.data.preprocessing.ordered_pool import ordered_map
from megatron_ext.data.preprocessing.outputs import DatasetOutputs, OutputLayout
from megatron_ext.data.preprocessing.reporter import Reporter
from megatron_ext.data.preprocessing.run_journal import RunJournal, RunState, finished_manifests, refuse_unusable_names
from megatron_ext.data.preprocessing.summary import summary_lines
from megatron_ext.data.records import BadRecord
from megatron_ext.data.rows.encoder import BlockEncoder, EncodedBlock, EncodeSettings
from megatron_ext.data.rows.forms import RowForm, make_row_form, special_ids_of
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.blocks import RecordBlock
from megatron_ext.data.sources.inputs import InputFile, expand_inputs
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import Shard, file_parts, parts_bytes
from megatron_ext.data.store.indexed import token_dtype
from megatron_ext.data.store.manifest import DatasetManifest, InputFacts, TokenizerFacts
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.build import build_tokenizer


@dataclass(frozen=True)
class PreprocessRequest:
    """What to read, how to tokenize it, where to write it; the flags of tools/preprocess_data.py.

    Attributes:
        commit_seconds: how often a run makes sure of what it did, so that `resume` can go on from there.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer_type: str
    tokenizer_model: str | None = None
    vocab_size: int | None = None
    tokenizer_engine: str = "auto"
    rows: RowSettings = dataclasses.field(default_factory=RowSettings)
    input_format: str = "auto"
    shard: Shard | None = None
    workers: int = 1
    log_interval: int = 1000
    stop_on_error: bool = False
    overwrite: bool = False
    resume: bool = False
    commit_seconds: float = 30.0


def preprocess(request: PreprocessRequest) -> list[DatasetManifest]:
    """Write `PREFIX_KEY_document.{bin,idx,manifest.json}` for each key and return the manifests.

    The files are byte-identical to megatron-core's builder's for the same tokens, for any number of workers, however
    many of them die, and however often the run is killed and resumed. Bad records go to `PREFIX.quarantine.jsonl`;
    texts without a token give no document and are counted as empty.

    Raises:
        DataError: an input cannot be read, an output exists or cannot be written, there is nothing to write, or with
            `stop_on_error` the first bad record.
        TokenizerError: the tokenizer cannot be used.
    """
    job = prepare(request)
    if request.resume and (finished := finished_job(job)):
        log.info(f"{job.layout.output_prefix} is complete already: nothing is left to resume")
        return finished
    with closing(RunJournal.open(job.layout, job.facts(), request.resume, request.overwrite)) as journal:
        outputs = DatasetOutputs(job.layout, journal.state.totals if journal.state else None)
        try:
            inputs = _encode_all(job, outputs, journal)
            manifests = outputs.publish(inputs, _tokenizer_facts(request, job.tokenizer))
            journal.remove()
        except BaseException:
            if journal.has_state:
                outputs.keep()
                log.warn(f"what was done so far lies beside {job.layout.output_prefix}; --resume goes on from there")
            raise
        finally:
            outputs.discard()
    for line in summary_lines(job.layout, manifests):
        log.info(line)
    return manifests


@dataclass(frozen=True)
class Job:
    """A request that was found good, and what was opened for it.

    Attributes:
        request: what was asked for.
        form: how records become texts.
        tokenizer: compared with its reference library on the beginnings of the files.
        files: the inputs.
        settings: what the encoder goes by.
        layout: what is written where.
    """

    request: PreprocessRequest
    form: RowForm
    tokenizer: Tokenizer
    files: list[InputFile]
    settings: EncodeSettings
    layout: OutputLayout

    @property
    def names(self) -> list[str]:
        """The inputs as messages and manifests call them."""
        return [file.name for file in self.files]

    def facts(self) -> dict[str, Any]:
        """What a run must have in common with the killed one that it resumes: everything that decides the bytes."""
        return {
            "tokenizer": f"{self.request.tokenizer_type} {self.tokenizer.fingerprint}",
            "rows": self.layout.rows,
            "keys": list(self.layout.keys),
            "dtype": self.layout.dtype,
            "shard": list(self.layout.shard) if self.layout.shard else None,
            "inputs": [[file.name, *_version(file)] for file in self.files],
        }


def prepare(request: PreprocessRequest) -> Job:
    """Find out before any work whether a request can be done, and open what it needs; nothing is written yet.

    Raises:
        DataError: a setting, an input or the place of an output is not good.
        TokenizerError: the tokenizer cannot be used.
    """
    if request.workers < 1:
        raise DataError(f"--workers {request.workers} is not possible", "At least one process does the work")
    if request.log_interval < 1:
        raise DataError(f"--log-interval {request.log_interval} is not possible", "It counts documents, at least 1")
    form = make_row_form(request.rows)
    tokenizer = build_tokenizer(
        request.tokenizer_type, request.tokenizer_model, request.vocab_size, request.tokenizer_engine
    )
    special_ids_of(form, request.rows, tokenizer)  # refuses what the vocabulary lacks
    files = expand_inputs(request.inputs, request.input_format)
    settings = EncodeSettings(request.rows, token_dtype(tokenizer.vocab_size).name)
    shard = request.shard
    layout = OutputLayout(
        output_prefix=shard_prefix(request.output_prefix, shard) if shard else request.output_prefix,
        keys=form.keys,
        dtype=settings.dtype,
        with_loss_mask=form.has_mask,
        append_eod=request.rows.append_eod,
        rows=_told(request.rows),
        shard=(shard.index, shard.count) if shard else None,
    )
    check_on_files(files, form, tokenizer)
    _make_folder(Path(request.output_prefix).parent)
    refuse_unusable_names(layout)
    return Job(request, form, tokenizer, files, settings, layout)


def _told(rows: RowSettings) -> dict[str, Any]:
    """What the manifest says of the rows: the settings that are not the default ones, as JSON has them."""
    usual = dataclasses.asdict(RowSettings())
    return json.loads(
        json.dumps({name: value for name, value in dataclasses.asdict(rows).items() if value != usual[name]})
    )


def shard_prefix(output_prefix: str, shard: Shard) -> str:
    """The output prefix of one shard (`dataset_names.shard_name` reads it back)."""
    return f"{output_prefix}.shard-{shard.index}-of-{shard.count}"


def _version(file: InputFile) -> list[int]:
    """Size and time of change: a file whose content changed is not what the killed run read."""
    if file.path is None or not file.is_regular:
        return []
    status = file.path.stat()
    return [status.st_size, status.st_mtime_ns]


def finished_job(job: Job) -> list[DatasetManifest] | None:
    """The manifests that this very job left earlier; None when it is not complete."""
    manifests = finished_manifests(job.layout) or []
    inputs = [(file.name, file.size_bytes) for file in job.files]
    same = [
        manifest.rows == job.layout.rows
        and manifest.tokenizer.fingerprint == job.tokenizer.fingerprint
        and [(entry.path, entry.size_bytes) for entry in manifest.inputs] == inputs
        for manifest in manifests
    ]
    return manifests if manifests and all(same) else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} of --output-prefix cannot be made ({error.strerror})") from None


class _Intake:
    """The blocks of the input, and where each one stood when its result comes back."""

    def __init__(self, job: Job, state: RunState | None) -> None:
        self.progress = ReadProgress()
        self.records = list(state.records) if state else [0] * len(job.files)
        self._job = job
        self._waiting: deque[RecordBlock] = deque()
        start = state.position if state else None
        self._blocks = read_blocks(job.files, self.progress, start, job.request.shard)

    def __iter__(self) -> Iterator[RecordBlock]:
        pipes = {index for index, file in enumerate(self._job.files) if not file.is_regular}
        for block in self._blocks:
            # a pipe gives its bytes once, so its sample is taken as they pass
            if block.file_index in pipes and check_on_block(block, self._job.form, self._job.tokenizer):
                pipes.discard(block.file_index)
            self._waiting.append(dataclasses.replace(block, payload=b""))
            yield block

    def take(self) -> RecordBlock:
        """The block whose result came back, without its content; its records count as read from now on."""
        block = self._waiting.popleft()
        self.records[block.file_index] = block.first_record - 1 + block.num_records
        return block

    def describe(self, block: RecordBlock) -> str:
        last = block.first_record + block.num_records - 1
        return f"records {block.first_record} to {last} of {self._job.names[block.file_index]}"


def _encode_all(job: Job, outputs: DatasetOutputs, journal: RunJournal) -> list[InputFacts]:
    request, state = job.request, journal.state
    sizes = [file.size_bytes for file in job.files]
    intake = _Intake(job, state)
    encode = BlockEncoder(job.settings, job.tokenizer)
    total_bytes = parts_bytes(file_parts(job.files, request.shard))
    reporter = Reporter(total_bytes, request.log_interval, intake.progress.raw_bytes)
    results: Iterator[EncodedBlock] = ordered_map(intake, encode, request.workers, intake.describe)
    try:
        for encoded in results:
            block = intake.take()
            if request.stop_on_error and encoded.bad:
                raise _first_bad(encoded.bad[0], job.names, request.shard)
            outputs.add(encoded, job.names)
            if journal.is_due(request.commit_seconds):
                outputs.sync()
                journal.commit(RunState(block.after, intake.records, outputs.totals))
            progress = intake.progress
            reporter.update(outputs.totals.num_read, progress.raw_bytes, progress.text_bytes, outputs.num_tokens)
    finally:
        reporter.close()
        results.close()  # type: ignore[attr-defined]
    for file, size in zip(job.files, sizes, strict=True):
        if size != file.size_bytes:
            log.warn(f"{file.name} changed its size while it was read; the dataset holds what was there at that time")
    return [InputFacts(file.name, sizes[index], intake.records[index]) for index, file in enumerate(job.files)]


def _tokenizer_facts(request: PreprocessRequest, tokenizer: Tokenizer) -> TokenizerFacts:
    return TokenizerFacts(
        type=request.tokenizer_type,
        model=request.tokenizer_model,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
    )


def _first_bad(record: BadRecord, names: Sequence[str], shard: Shard | None) -> DataError:
    place = f" (counted from where shard {shard.index}/{shard.count} begins)" if shard else ""
    return DataError(
        f"line {record.line} of {names[record.file_index]}{place} is bad: {record.reason} ({record.detail})",
        "--on-error stop refuses the first bad record; nothing was published",
        "Mend the line, or leave --on-error at quarantine",
    )
