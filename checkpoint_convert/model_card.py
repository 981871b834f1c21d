"""What an export says about itself: a record for programs, and the same facts as a README for people."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint_convert.parity import TOLERANCE, Parity

if TYPE_CHECKING:
    from checkpoint_convert.architecture import Architecture
    from megatron_ext.config import RunConfig

RECORD = "training_provenance.json"
CARD = "README.md"
PACKAGES = ("megatron-ext", "torch", "megatron-core", "transformers", "tokenizers", "safetensors", "sentencepiece")


@dataclass(frozen=True)
class Origin:
    """Where the exported weights come from.

    Args:
        checkpoint: name of the checkpoint folder.
        iteration: iterations trained.
        consumed_samples: sequences seen.
        provenance: what the checkpoint itself records of its making.
    """

    checkpoint: str
    iteration: int
    consumed_samples: int
    provenance: Mapping[str, Any]


def dataset_facts(run: RunConfig) -> list[dict[str, Any]]:
    """One entry per training dataset: its name, and the facts of its manifest where that can still be read."""
    from megatron_ext.data.store.manifest import read_manifest
    from megatron_ext.errors import DataError

    entries = []
    for weight, prefix in blend_of(run.data.data_path or run.data.train_data_path or ()):
        entry: dict[str, Any] = {"name": Path(prefix).name, "weight": weight}
        try:
            manifest = read_manifest(prefix)
        except DataError:
            manifest = None
        if manifest is not None:
            entry |= {
                "documents": manifest.documents,
                "tokens": manifest.tokens,
                "input_files": [Path(item.path).name for item in manifest.inputs],
                "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
                "sha256": manifest.bin_file.sha256,
            }
        entries.append(entry)
    return entries


def blend_of(arguments: Sequence[str]) -> list[tuple[float | None, str]]:
    """(weight, prefix) pairs of `--data-path`: WEIGHT PREFIX ..., or prefixes alone (weight None)."""
    if len(arguments) % 2 == 0 and arguments and all(_is_number(word) for word in arguments[::2]):
        return [(float(weight), prefix) for weight, prefix in zip(arguments[::2], arguments[1::2], strict=True)]
    return [(None, prefix) for prefix in arguments]


def record_of(
    run: RunConfig, origin: Origin, architecture: Architecture, parity: Parity, dtype: str, files: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `training_provenance.json`; `files` is name -> sha256 of the weight files."""
    from megatron_ext.config import run_config_to_dict

    length = run.train.seq_length or 0
    return {
        "origin": {**asdict(origin), "provenance": dict(origin.provenance)},
        "tokens_trained": origin.consumed_samples * length,
        "datasets": dataset_facts(run),
        "architecture": architecture.hf_class,
        "dtype": dtype,
        "parity": {**asdict(parity), "relative": parity.relative, "tolerance": TOLERANCE, "compared_in": "float32"},
        "packages": _versions(),
        "weight_files_sha256": dict(files),
        "run": run_config_to_dict(run),
    }


def card_of(record: Mapping[str, Any], parameters: int, notes: Sequence[str]) -> str:
    """README.md: what the model is, what it was trained on and how, and how it was checked; licence left open."""
    run, parity = record["run"], record["parity"]
    model, train, optim, parallel = run["model"], run["train"], run["optim"], run["parallel"]
    length = train["seq_length"]
    shape = {
        "class": record["architecture"],
        "parameters": f"{parameters:,}",
        "layers": model["num_layers"],
        "hidden size": model["hidden_size"],
        "attention heads": model["num_attention_heads"],
        "key/value heads": model["num_query_groups"] or model["num_attention_heads"],
        "positions": model["position_embedding_type"],
        "stored as": record["dtype"],
    }
    recipe = {
        "sequences": f"{record['origin']['consumed_samples']:,} of {length} tokens",
        "tokens": f"{record['tokens_trained']:,}",
        "iterations": f"{record['origin']['iteration']:,}",
        "global batch size": train["global_batch_size"],
        "optimizer": optim["optimizer"],
        "learning rate": f"{optim['lr']} to {optim['min_lr']}, {optim['lr_decay_style']}",
        "weight decay": optim["weight_decay"],
        "precision": "bf16" if train["bf16"] else "fp16" if train["fp16"] else "fp32",
        "layout": ", ".join(f"{name} {parallel[key]}" for name, key in _LAYOUT.items()),
        "seed": train["seed"],
    }
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n---",
        "# A base language model",
        "A pretrained decoder, not tuned to follow instructions. The licence is not stated; ask whoever trained it.",
        _USE.format(extra=", trust_remote_code=True" if record["architecture"] == "BaichuanForCausalLM" else ""),
        "## Shape\n\n" + _table(shape),
        "## Training data\n\n" + _datasets(record["datasets"]),
        "## Training\n\n" + _table(recipe),
        "## Check\n\n"
        f"The exported folder, loaded by transformers {record['packages'].get('transformers')} in fp32, was compared "
        f"with the training model on {parity['tokens']} tokens: the largest difference of a logit is "
        f"{parity['largest_difference']:.2e}, {parity['relative']:.2e} of the largest logit.",
    ]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_LAYOUT = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "context": "context_parallel_size",
}

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder{extra})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""


def _datasets(entries: Sequence[Mapping[str, Any]]) -> str:
    if not entries:
        return "Not recorded."
    lines = []
    for entry in entries:
        line = f"- `{entry['name']}`" + (f", weight {entry['weight']}" if entry["weight"] is not None else "")
        if "tokens" in entry:
            files = ", ".join(f"`{name}`" for name in entry["input_files"])
            line += f": {entry['documents']:,} documents, {entry['tokens']:,} tokens, made from {files}"
        lines.append(line)
    return "\n".join(lines)


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
