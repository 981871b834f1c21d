"""Export a checkpoint as a Hugging Face folder.

    python checkpoint_convert/megatron_to_hf.py --load CHECKPOINTS --save FOLDER

The folder appears only when it is complete and when transformers, loading it in another process, computes the training
model's logits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run as a file: this folder's modules are found through their package only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from megatron_ext.errors import ConversionError, run_command

if TYPE_CHECKING:
    import torch

    from checkpoint_convert.engine import Conversion
    from checkpoint_convert.parity import Parity
    from checkpoint_convert.shards import Shard
    from megatron_ext.checkpoint.full import FullCheckpoint
    from megatron_ext.tokenizer.base import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Job:
    """Everything known before a byte is written.

    Attributes:
        checkpoint: the opened checkpoint.
        conversion: table, model and sizes.
        dtype: torch's name of the stored element type.
        shards: the files of weights.
        tokenizer: the training tokenizer, or None.
    """

    checkpoint: FullCheckpoint
    conversion: Conversion
    dtype: str
    shards: list[Shard]
    tokenizer: Tokenizer | None


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="megatron_to_hf.py", description="Export a checkpoint as a Hugging Face folder, and check its logits."
    )
    parser.add_argument("--load", required=True, metavar="DIR", help="folder of checkpoints, or one checkpoint")
    parser.add_argument("--save", required=True, metavar="DIR", help="new folder to write; never overwritten")
    parser.add_argument(
        "--architecture", default="auto", help="auto (by the kind of positions), llama or baichuan; default auto"
    )
    parser.add_argument(
        "--dtype", choices=[*SHORT_DTYPES, *DTYPES], help="type of the stored weights; default: the checkpoint's own"
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", help="largest file of weights, e.g. 5GB, 200MiB; default 5GB"
    )
    parser.add_argument(
        "--parity-tokens", type=int, default=64, metavar="N", help="tokens to compare logits on; default 64"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run the command."""
    options = parse_arguments(arguments)
    if options.parity_tokens < 2:
        raise ConversionError(f"--parity-tokens {options.parity_tokens}", "at least 2 tokens must be compared")
    warnings.filterwarnings("ignore", module=r"megatron\.|torch\.")  # what they fall back to does not matter here
    from checkpoint_convert.publish import check_free, published_folder

    target = Path(options.save)
    check_free(target)
    job = prepare(options)
    with published_folder(target) as folder:
        write_weights(job, folder)
        write_settings(job, folder)
        parity, findings = check_logits(job, folder, options.parity_tokens)
        write_origin(job, folder, parity, findings["parameters"])
    print(f"exported {job.conversion.architecture.hf_class} to {target}")


def prepare(options: argparse.Namespace) -> Job:
    """Open the checkpoint and refuse what cannot be exported.

    Raises:
        ConversionError: the model, a tensor, the element type or the tokenizer cannot be expressed on the other side.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from checkpoint_convert.architectures import architecture_for_model
    from checkpoint_convert.engine import Conversion, sizes_of
    from checkpoint_convert.shards import parse_bytes, plan_shards
    from checkpoint_convert.tokenizer_files import training_tokenizer
    from megatron_ext.checkpoint.full import open_full

    max_bytes = parse_bytes(options.max_shard_size)
    checkpoint = open_full(Path(options.load))
    model = checkpoint.run.with_values(max_position_embeddings=checkpoint.run.max_position_embeddings).model
    architecture = architecture_for_model(model, options.architecture)
    padded = rows_of_embedding(checkpoint)
    conversion = Conversion(architecture, model, sizes_of(model, checkpoint.vocab_size, padded))
    conversion.check_megatron(checkpoint)
    dtype = SHORT_DTYPES.get(options.dtype, options.dtype) or stored_dtype(checkpoint)
    tokenizer = training_tokenizer(
        checkpoint.run.data.tokenizer_type, checkpoint.tokenizer_files, checkpoint.vocab_size
    )
    print(
        f"{checkpoint.path}: iteration {checkpoint.iteration}, {architecture.hf_class}, {model.num_layers} layers, "
        f"vocabulary {checkpoint.vocab_size} ({padded} rows in training), to {dtype}"
    )
    return Job(checkpoint, conversion, dtype, plan_shards(conversion.hf_layout(), dtype, max_bytes), tokenizer)


def rows_of_embedding(checkpoint: FullCheckpoint) -> int:
    """Rows of the embedding in training, padding included; ConversionError if there are fewer than the vocabulary."""
    name = "embedding.word_embeddings.weight"
    if name not in checkpoint.names():
        raise ConversionError(f"{checkpoint.path} holds no {name}", fix="name a checkpoint of a whole model")
    rows = checkpoint.shape(name)[0]
    if rows < checkpoint.vocab_size:
        raise ConversionError(f"{name} has {rows} rows, the vocabulary has {checkpoint.vocab_size} ids")
    return rows


def stored_dtype(checkpoint: FullCheckpoint) -> str:
    """The element type of the checkpoint's weights; ConversionError if they have several or another than floats."""
    found = sorted({str(checkpoint.dtype(name)).removeprefix("torch.") for name in checkpoint.names()})
    if len(found) == 1 and found[0] in DTYPES:
        return found[0]
    raise ConversionError(
        f"the checkpoint's weights are stored as {', '.join(found)}",
        "without --dtype they must all have one type of " + ", ".join(DTYPES),
        "choose one with --dtype",
    )


def caster(dtype: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that gives a tensor the stored element type."""
    import torch

    target = getattr(torch, dtype)
    return lambda tensor: tensor.detach().to(target)


def write_weights(job: Job, folder: Path) -> None:
    """Stream the weights into `folder`, one row of the table at a time."""
    from checkpoint_convert.shards import write_shards

    stream = job.conversion.export(job.checkpoint, caster(job.dtype))
    written = write_shards(folder, job.shards, job.dtype, with_progress(stream, len(job.conversion.hf_layout())))
    print(f"wrote {written:,} bytes of weights in {len(job.shards)} file(s)")


def with_progress(stream: Iterator[Any], total: int) -> Iterator[Any]:
    """The stream unchanged, with a progress bar on a terminal."""
    from tqdm import tqdm

    return iter(tqdm(stream, total=total, unit="tensor", desc="weights", disable=None, leave=False))


def write_settings(job: Job, folder: Path) -> None:
    """Write configuration, tokenizer and, where needed, the modelling files."""
    from checkpoint_convert.hf_files import CONFIG, GENERATION, SpecialIds, config_of, generation_config_of, write_json
    from checkpoint_convert.tokenizer_files import write_tokenizer

    conversion, tokenizer = job.conversion, job.tokenizer
    special = SpecialIds()
    if tokenizer is not None:
        special = SpecialIds(tokenizer.bos_id, tokenizer.eod_id, tokenizer.pad_id)
        write_tokenizer(folder, tokenizer, conversion.model.max_position_embeddings)
        print(f"wrote the tokenizer ({tokenizer.type_name}, {tokenizer.vocab_size} ids)")
    config = config_of(conversion.architecture, conversion.model, job.checkpoint.vocab_size, job.dtype, special)
    write_json(folder / CONFIG, config)
    write_json(folder / GENERATION, generation_config_of(special))
    for file in conversion.architecture.own_files:
        shutil.copyfile(file, folder / file.name)


def check_logits(job: Job, folder: Path, count: int) -> tuple[Parity, dict[str, Any]]:
    """Compare the reloaded folder with the training model, both in fp32, both from the weights in the exported type.

    Raises:
        ConversionError: logits or token ids differ, or the folder does not load.
    """
    import torch

    from checkpoint_convert.parity import compare, parity_tokens, reloaded, require
    from checkpoint_convert.tokenizer_files import SAMPLES, compare_ids
    from megatron_ext.model.logits import full_logits

    checkpoint, conversion = job.checkpoint, job.conversion
    tokens = parity_tokens(checkpoint.vocab_size, count, conversion.model.max_position_embeddings)
    cast = caster(job.dtype)
    print(f"comparing fp32 logits of the {job.dtype} weights: training model ...", flush=True)
    reference = full_logits(
        checkpoint.run, checkpoint.vocab_size, lambda name: cast(checkpoint.read(name)), torch.tensor(tokens)
    )
    texts = SAMPLES if job.tokenizer is not None else ()
    found, findings = reloaded(folder, tokens, texts, own_code=bool(conversion.architecture.own_files))
    parity = compare(reference, found)
    require(parity)
    if job.tokenizer is not None:
        compare_ids(findings["ids"], job.tokenizer, texts, f"transformers {findings['transformers']}")
    print(
        f"transformers {findings['transformers']} agrees: max |difference of logits| {parity.largest_difference:.3e}, "
        f"{parity.relative:.2e} of the largest logit, over {parity.tokens} tokens"
    )
    return parity, findings


def write_origin(job: Job, folder: Path, parity: Parity, parameters: int) -> None:
    """Write the model card and its record."""
    from checkpoint_convert.hf_files import write_json
    from checkpoint_convert.model_card import CARD, RECORD, Origin, card_of, file_digest, record_of

    checkpoint = job.checkpoint
    origin = Origin(
        checkpoint=checkpoint.path.name,
        iteration=checkpoint.iteration,
        consumed_samples=checkpoint.consumed_samples,
        provenance=checkpoint.record.provenance,
    )
    digests = {shard.file: file_digest(folder / shard.file) for shard in job.shards}
    record = record_of(checkpoint.run, origin, job.conversion.architecture, parity, job.dtype, digests)
    write_json(folder / RECORD, record)
    (folder / CARD).write_text(card_of(record, parameters, notes_of(job)), encoding="utf-8")


def notes_of(job: Job) -> list[str]:
    """What a user of the folder should know besides its tables."""
    notes = []
    model = job.conversion.model
    if job.tokenizer is None:
        notes.append("Trained on token ids; the folder holds no tokenizer.")
    if job.conversion.architecture.name == "baichuan":
        notes.append(
            "The model class is in this folder: pass `trust_remote_code=True`. llama.cpp takes a BaichuanForCausalLM "
            "as an ALiBi model only with 40 layers, vLLM only with a hidden size other than 4096; this one has "
            f"{model.num_layers} layers and hidden size {model.hidden_size}."
        )
    if model.norm_head:
        notes.append(
            "The rows of the output layer are stored as they were trained, and the model class divides them by their "
            "length. vLLM does so too only when the vocabulary has 125696 entries, as Baichuan 2's; llama.cpp never "
            "does."
        )
    return notes


if __name__ == "__main__":
    run_command(main)
