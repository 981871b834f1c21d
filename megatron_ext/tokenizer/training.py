"""Training a SentencePiece tokenizer: text in, a verified model file out; equal input gives equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from megatron_ext import log
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.records import RecordError, texts_of
from megatron_ext.data.sources.inputs import InputFile, expand_inputs
from megatron_ext.data.sources.parsing import Record
from megatron_ext.data.sources.pieces import ReadOptions, ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.presets import TrainingSettings

UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
# The trainer leaves out every line that holds one of these (U+2585 marks unknowns inside it), so lines end there.
_LINE_ENDS = re.compile("[\n\r\t\x00\u2585]+")
_MAX_LINE_CHARS = 4096
_MAX_LINE_BYTES = 4 * _MAX_LINE_CHARS  # the trainer leaves out longer lines; no cut line reaches this
_NUM_THREADS = 16  # fixed, whatever the machine has: unigram sums depend on it in their last bits


@dataclass(frozen=True)
class TokenizerRequest:
    """What to train on, how, and where to write.

    Attributes:
        inputs: files, folders, glob patterns or `-`, in every format that can be tokenized.
        output_prefix: `PREFIX.model` and `PREFIX.vocab` are written.
        settings: what decides the model.
        json_keys: keys of JSON objects, or columns of parquet files, whose texts are used.
        with_pad: give id 3 to a padding piece.
        input_sentence_size: lines drawn at random for the training; 0 uses all.
        seed: decides which lines are drawn.
        overwrite: replace outputs that exist.
        input_format: "auto" goes by the suffix (an unknown one means JSON lines); others as in `inputs.FORMATS`.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    settings: TrainingSettings
    json_keys: tuple[str, ...] = ("text",)
    with_pad: bool = False
    input_sentence_size: int = 0
    seed: int = 1234
    overwrite: bool = False
    input_format: str = "auto"


@dataclass
class TextCounts:
    """What became of the records of the input: read = used + bad + empty."""

    read: int = 0
    used: int = 0
    bad: int = 0
    empty: int = 0
    lines: int = 0
    characters: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def train_tokenizer(request: TokenizerRequest) -> TextCounts:
    """Train, check what was asked for against the model, and publish `PREFIX.vocab` and `PREFIX.model`.

    The ids 0, 1, 2 are the unknown, begin and end pieces, 3 the padding piece where one is asked for.

    Raises:
        TokenizerError: the outputs exist, or the text does not support the settings.
        DataError: an input cannot be read.
    """
    outputs = [Path(f"{request.output_prefix}.{suffix}") for suffix in ("vocab", "model")]
    _refuse_existing(outputs, request.overwrite)
    files = expand_inputs(request.inputs, request.input_format)
    counts = TextCounts()
    log.info(f"training {request.settings.model_type} with {request.settings.vocab_size} pieces ...")
    lines = text_lines(files, request.json_keys, counts)
    if request.input_sentence_size > 0:
        lines = draw_lines(lines, request.input_sentence_size, request.seed)
    content = _train(request, lines, counts)
    verify(content, request)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    vocabulary = "".join(f"{model.id_to_piece(i)}\t{model.get_score(i):g}\n" for i in range(model.get_piece_size()))
    _publish(outputs, [vocabulary.encode("utf-8"), content])
    for line in summary(counts, model, outputs[1]):
        log.info(line)
    return counts


def text_lines(files: Sequence[InputFile], json_keys: Sequence[str], counts: TextCounts) -> Iterator[str]:
    """The lines of all texts, none of them longer than the trainer takes; updates `counts`."""
    options = ReadOptions(columns=tuple(json_keys))
    for block in read_blocks(files, ReadProgress(), options=options):
        for record in block.parsed():
            counts.read += 1
            try:
                lines = [line for text in _texts(record, json_keys) for line in _cut(text)]
            except RecordError as error:
                counts.bad += 1
                counts.reasons[error.reason] = counts.reasons.get(error.reason, 0) + 1
                continue
            counts.used += bool(lines)
            counts.empty += not lines
            counts.lines += len(lines)
            counts.characters += sum(map(len, lines))
            yield from lines


def draw_lines(lines: Iterable[str], count: int, seed: int) -> Iterator[str]:
    """At most `count` lines, drawn at random without repetition, in their order; a pure function of the arguments.

    SentencePiece's own drawing differs from run to run whatever its seed is.

    Source: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """
    random = Random(seed)
    drawn: list[tuple[int, str]] = []
    for index, line in enumerate(lines):
        place = index if index < count else random.randrange(index + 1)
        if index < count:
            drawn.append((index, line))
        elif place < count:
            drawn[place] = (index, line)
    return iter([line for _, line in sorted(drawn)])


def verify(content: bytes, request: TokenizerRequest) -> None:
    """Compare what was asked for with what the trained model says about itself.

    Raises:
        TokenizerError: a setting did not take effect.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    trainer, normalizer, settings = proto.trainer_spec, proto.normalizer_spec, request.settings
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    symbols = {piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED}
    checks = {
        "--model-type": (trainer.ModelType.Name(trainer.model_type).lower(), settings.model_type),
        "--vocab-size": (len(proto.pieces), settings.vocab_size),
        "--character-coverage": (round(trainer.character_coverage, 6), round(settings.character_coverage, 6)),
        "--byte-fallback": ("<0x00>" in pieces and trainer.byte_fallback, settings.byte_fallback),
        "--split-digits": (trainer.split_digits, settings.split_digits),
        "--normalization": (normalizer.name, settings.normalization),
        "--add-dummy-prefix": (normalizer.add_dummy_prefix, settings.add_dummy_prefix),
        "--remove-extra-whitespaces": (normalizer.remove_extra_whitespaces, settings.remove_extra_whitespaces),
        "--allow-whitespace-only-pieces": (trainer.allow_whitespace_only_pieces, settings.allow_whitespace_only_pieces),
        "--max-piece-length": (trainer.max_sentencepiece_length, settings.max_piece_length),
        "--user-defined-symbols": (sorted(symbols), sorted(set(settings.user_defined_symbols))),
        "unknown, begin and end ids": (
            (trainer.unk_id, trainer.bos_id, trainer.eos_id),
            (UNK_ID, BOS_ID, EOS_ID),
        ),
        "--with-pad": (trainer.pad_id, PAD_ID if request.with_pad else -1),
    }
    wrong = [f"{name}: asked {asked}, got {got}" for name, (got, asked) in checks.items() if got != asked]
    if wrong:
        raise TokenizerError(f"the trained model is not what was asked for ({'; '.join(wrong)})")


def summary(counts: TextCounts, model: sentencepiece.SentencePieceProcessor, path: Path) -> list[str]:
    """Lines that tell what was read and what the model is like."""
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    num_bytes = sum(model.is_byte(index) for index in range(len(pieces)))
    num_digits = sum(len(re.findall("[0-9]", piece)) > 1 for piece in pieces if not piece.startswith("<0x"))
    reasons = "".join(f", {number} {reason}" for reason, number in sorted(counts.reasons.items()))
    return [
        f"{counts.read} records read = {counts.used} used + {counts.bad} bad + {counts.empty} empty{reasons}; "
        f"{counts.lines} lines, {counts.characters} characters",
        f"{path}: {len(pieces)} pieces, {num_bytes} of them bytes, {num_digits} with several digits; "
        f"unk {model.unk_id()}, bos {model.bos_id()}, eos {model.eos_id()}, pad {model.pad_id()}",
    ]


def _train(request: TokenizerRequest, lines: Iterator[str], counts: TextCounts) -> bytes:
    settings, model = request.settings, io.BytesIO()
    options: dict[str, Any] = {
        "model_type": settings.model_type,
        "vocab_size": settings.vocab_size,
        "character_coverage": settings.character_coverage,
        "byte_fallback": settings.byte_fallback,
        "split_digits": settings.split_digits,
        "normalization_rule_name": settings.normalization,
        "add_dummy_prefix": settings.add_dummy_prefix,
        "remove_extra_whitespaces": settings.remove_extra_whitespaces,
        "allow_whitespace_only_pieces": settings.allow_whitespace_only_pieces,
        "max_sentencepiece_length": settings.max_piece_length,
        "user_defined_symbols": list(settings.user_defined_symbols),
        "unk_id": UNK_ID,
        "bos_id": BOS_ID,
        "eos_id": EOS_ID,
        "pad_id": PAD_ID if request.with_pad else -1,
        "input_sentence_size": 0,
        "shuffle_input_sentence": False,
        "max_sentence_length": _MAX_LINE_BYTES,
        "num_threads": _NUM_THREADS,
        "minloglevel": 2,
    }
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise _refusal(str(error), settings, counts) from None
    return model.getvalue()


def _refusal(message: str, settings: TrainingSettings, counts: TextCounts) -> TokenizerError:
    numbers = [int(number) for number in re.findall(r"\d+", message.partition("(")[2].partition(")")[2])]
    what = f"a tokenizer with --vocab-size {settings.vocab_size} cannot be trained on this text"
    if "required_chars" in message or "smaller than" in message:
        needed = f" (about {max(numbers)})" if numbers else ""
        return TokenizerError(
            what,
            f"Special pieces, bytes and the characters of --character-coverage {settings.character_coverage} need more"
            f"{needed}",
            "Use a larger --vocab-size or a smaller --character-coverage",
        )
    if "too high" in message or "too large" in message:
        return TokenizerError(what, message.rpartition("] ")[2] or message, "Use more text or a smaller --vocab-size")
    if "sentences_.empty()" in message:
        found = f"{counts.read} records: {counts.bad} bad, {counts.empty} empty {counts.reasons or ''}".strip()
        return TokenizerError("there is no text to train on", f"Of {found}", "Check --input and --json-keys")
    return TokenizerError(what, message)


def _cut(text: str) -> Iterator[str]:
    for line in _LINE_ENDS.split(text):
        while len(line) > _MAX_LINE_CHARS:
            end = line.rfind(" ", 1, _MAX_LINE_CHARS)
            end = end if end > 0 else _MAX_LINE_CHARS
            yield line[:end]
            line = line[end:]
        if line:
            yield line


def _texts(record: Record, json_keys: Sequence[str]) -> list[str]:
    if isinstance(record, RecordError):
        raise record
    return [record] if isinstance(record, str) else texts_of(record, json_keys)


def _refuse_existing(outputs: Sequence[Path], overwrite: bool) -> None:
    existing = [str(path) for path in outputs if path.exists()]
    if existing and not overwrite:
        raise TokenizerError(
            f"the output {existing[0]} exists already",
            fix="Give --overwrite to replace it, or choose another --output-prefix",
        )


def _publish(outputs: Sequence[Path], contents: Sequence[bytes]) -> None:
    files: list[PendingFile] = []
    try:
        for path, content in zip(outputs, contents, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(PendingFile(path))
            files[-1].write(content)
            files[-1].finish()
        for file in files:
            file.publish()
    finally:
        for file in files:
            file.discard()
