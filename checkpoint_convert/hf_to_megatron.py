"""Import a Hugging Face folder as a checkpoint that `pretrain_gpt.py --load` opens under any layout.

    python checkpoint_convert/hf_to_megatron.py --load FOLDER --save CHECKPOINTS

Reads config.json and safetensors only; no pickle is opened and no code from the folder runs.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run as a file: this folder's modules are found through their package only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from megatron_ext.errors import ConversionError, run_command

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TOKENIZERS = (("tokenizer.model", "SentencePieceTokenizer"), ("tokenizer.json", "HuggingFaceTokenizer"))
FILE_OF = {"HuggingFaceTokenizer": "tokenizer.json"}
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="hf_to_megatron.py", description="Import a Hugging Face folder (safetensors) as a checkpoint."
    )
    parser.add_argument("--load", required=True, metavar="DIR", help="folder with config.json and safetensors files")
    parser.add_argument("--save", required=True, metavar="DIR", help="folder of checkpoints to write into")
    parser.add_argument(
        "--dtype", choices=[*DTYPES, *DTYPES.values()], help="type of the weights; default: the folder's own"
    )
    parser.add_argument(
        "--tokenizer-type",
        choices=["SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "HuggingFaceTokenizer"],
        help="how training reads the folder's tokenizer; default: SentencePieceTokenizer for a tokenizer.model, else "
        "HuggingFaceTokenizer for a tokenizer.json",
    )
    parser.add_argument(
        "--make-vocab-size-divisible-by", type=int, default=128, metavar="N", help="pad the vocabulary; default 128"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run the command.

    Raises:
        ConversionError: the folder holds a model that cannot be expressed here, or not all of it.
    """
    options = parse_arguments(arguments)
    if options.make_vocab_size_divisible_by < 1:
        raise ConversionError(f"--make-vocab-size-divisible-by {options.make_vocab_size_divisible_by}", "at least 1")
    root = Path(options.load)
    if not root.is_dir():
        raise ConversionError(f"--load {root} is not a folder", "names on a model hub are not looked up")
    warnings.filterwarnings("ignore", module=r"megatron\.|torch\.")  # what they fall back to does not matter here
    from checkpoint_convert.architectures import architecture_for_config
    from checkpoint_convert.engine import Conversion, sizes_of
    from checkpoint_convert.fields import look_up
    from checkpoint_convert.hf_files import CONFIG, read_json
    from checkpoint_convert.shards import HfFolder
    from megatron_ext.checkpoint.full import FullState, write_full

    config = read_json(root / CONFIG)
    architecture = architecture_for_config(config)
    vocab_size = look_up(config, "vocab_size")
    kind, files = tokenizer_of(root, options.tokenizer_type)
    run = run_of(architecture.model_fields(config), kind, files, options.make_vocab_size_divisible_by)
    architecture.check_model(run.model)
    conversion = Conversion(architecture, run.model, sizes_of(run.model, vocab_size, padded_rows(run, vocab_size)))
    source = HfFolder(root)
    conversion.check_hf(source)
    change = caster(DTYPES.get(options.dtype, options.dtype))
    print(f"{root}: {architecture.hf_class}, {run.model.num_layers} layers, vocabulary {vocab_size}", flush=True)
    state = FullState(
        run=run,
        vocab_size=vocab_size,
        tensors=conversion.restore(source, change),
        tokenizer_files=files,
        provenance={"imported_from": root.resolve().name, "class": architecture.hf_class},
    )
    print(f"imported to {write_full(Path(options.save), state)}")


def tokenizer_of(root: Path, wanted: str | None = None) -> tuple[str | None, list[Path]]:
    """Type and files of the folder's tokenizer, the mapping first; (None, []) without one.

    Raises:
        ConversionError: the `wanted` type reads a file that the folder does not hold.
    """
    for name, kind in TOKENIZERS:
        if (root / name).is_file() and (wanted is None or name == FILE_OF.get(wanted, "tokenizer.model")):
            sides = [root / side for side in SIDE_FILES if (root / side).is_file()]
            return wanted or kind, [root / name, *(sides if name == "tokenizer.json" else [])]
    if wanted is not None:
        raise ConversionError(
            f"--tokenizer-type {wanted}", f"{root} holds no {FILE_OF.get(wanted, 'tokenizer.model')}, which it reads"
        )
    return None, []


def run_of(fields: dict[str, Any], kind: str | None, files: list[Path], divisor: int) -> RunConfig:
    """A RunConfig whose model section is `fields`; sequences as long as the model's positions."""
    from megatron_ext.config import DataConfig, ModelConfig, RunConfig, TrainConfig

    return RunConfig(
        model=ModelConfig(**fields, make_vocab_size_divisible_by=divisor),
        data=DataConfig(tokenizer_type=kind, tokenizer_model=str(files[0]) if files else None),
        train=TrainConfig(seq_length=fields["max_position_embeddings"]),
    )


def padded_rows(run: RunConfig, vocab_size: int) -> int:
    """Rows of the embedding on one process: the vocabulary up to the next multiple."""
    unit = run.model.make_vocab_size_divisible_by
    return -(-vocab_size // unit) * unit


def caster(dtype: str | None) -> Any:
    """The function that gives a tensor the wanted element type; None to keep it."""
    if dtype is None:
        return None
    import torch

    target = getattr(torch, dtype)
    return lambda tensor: tensor.to(target)


if __name__ == "__main__":
    run_command(main)
