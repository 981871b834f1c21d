"""Every bad input is one paragraph on stderr that names file, flag and numbers, and exit status 1, before training.

Most cases run the program inside this process, through the same wrapper that handles its errors; a few start it as a
user does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import pretrain_gpt
from megatron_ext.data.store.manifest import read_manifest
from megatron_ext.errors import run_command

pytestmark = pytest.mark.e2e

IDS = 99
FLAGS = {
    "--num-layers": 1, "--hidden-size": 16, "--num-attention-heads": 2, "--ffn-hidden-size": 24, "--swiglu": None,
    "--normalization": "RMSNorm", "--position-embedding-type": "rope", "--disable-bias-linear": None,
    "--untie-embeddings-and-output-weights": None, "--seq-length": 16, "--micro-batch-size": 1,
    "--global-batch-size": 2, "--lr": "1e-3", "--lr-decay-style": "constant", "--train-iters": 3, "--eval-iters": 1,
    "--eval-interval": 100, "--split": "90,10,0", "--tokenizer-type": "NullTokenizer", "--vocab-size": IDS,
    "--num-workers": 0, "--num-threads": 1, "--device": "cpu", "--hidden-dropout": 0, "--attention-dropout": 0,
    "--no-progress": None,
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a program left: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    def refuses(self, *parts: object) -> None:
        """Exit status 1, and one paragraph that holds every part."""
        assert self.status == 1, self
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert self.err.endswith(errors[0] + "\n"), self.err
        for part in parts:
            assert str(part) in errors[0], f"{part!r} is not in: {errors[0]}"
        assert "Traceback" not in self.err + self.out
        assert "iteration" not in self.out, "training had begun"


@dataclass
class Program:
    """pretrain_gpt.py with good flags, of which a test makes bad ones."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def prefix(self) -> str:
        """Where the good dataset lies."""
        return str(self.folder / "corpus_text_document")

    def line(self, changes: dict[str, object]) -> list[str]:
        """The command line; a flag changed to ... is left out."""
        flags = {**FLAGS, "--data-path": self.prefix, **changes}
        words = []
        for flag, value in flags.items():
            if value is not ...:
                words += [flag] if value is None else [flag, *str(value).split("|")]
        return words

    def run(self, world_size: int = 1, **changes: object) -> Said:
        """Run it in this process; `seq_length=8` changes `--seq-length`."""
        named = {"--" + name.replace("_", "-"): value for name, value in changes.items()}
        self.monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", *self.line(named)])
        self.monkeypatch.setenv("WORLD_SIZE", str(world_size))
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
            self.monkeypatch.delenv(name, raising=False)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(pretrain_gpt.main)
        said = self.capsys.readouterr()
        return Said(int(stopped.value.code or 0), said.out, said.err)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of numbers, made by the preprocessing command."""
    from tools.preprocess_data import main

    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(map(str, random.integers(0, IDS, 30)))}) for _ in range(40)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    flags = f"--tokenizer-type NullTokenizer --vocab-size {IDS} --append-eod --output-prefix {folder / 'corpus'}"
    main(["--input", str(folder / "corpus.jsonl"), *flags.split()])
    return folder


@pytest.fixture
def program(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    for path in corpus.glob("corpus_text_document.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return Program(tmp_path, monkeypatch, capsys)


def test_the_good_input_trains(program: Program):
    said = program.run(save=program.folder / "run")
    assert said.status == 0, said.err
    assert "iteration" in said.out
    assert (program.folder / "run" / "iter_0000003").is_dir()


# files that are not there or cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_of_the_dataset(program: Program, suffix: str):
    Path(program.prefix + suffix).unlink()
    program.run().refuses(program.prefix + suffix, "cannot be read", "No such file")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".manifest.json"])
def test_a_folder_where_a_file_belongs(program: Program, suffix: str):
    path = Path(program.prefix + suffix)
    path.unlink()
    path.mkdir()
    program.run().refuses(path)


def test_a_prefix_that_does_not_exist(program: Program):
    program.run(data_path=program.folder / "nothing").refuses(program.folder / "nothing.idx", "--data-path")


def test_a_prefix_with_its_suffix(program: Program):
    program.run(data_path=program.prefix + ".bin").refuses(program.prefix + ".bin", "without .bin or .idx")


def test_no_data_at_all(program: Program):
    program.run(data_path=...).refuses("--data-path")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(program: Program):
    Path(program.prefix + ".idx").chmod(0)
    program.run().refuses(program.prefix + ".idx", "Permission denied")


def test_a_missing_tokenizer_model(program: Program):
    path = program.folder / "t.model"
    said = program.run(tokenizer_type="SentencePieceTokenizer", tokenizer_model=path, vocab_size=...)
    said.refuses(path)


def test_a_tokenizer_model_that_is_none(program: Program):
    path = program.folder / "t.model"
    path.write_bytes(b"not a model")
    program.run(tokenizer_type="SentencePieceTokenizer", tokenizer_model=path, vocab_size=...).refuses(path)


def test_a_missing_and_a_broken_configuration_file(program: Program):
    path = program.folder / "model.yaml"
    program.run(config=path).refuses(path)
    path.write_text("model: [unclosed")
    program.run(config=path).refuses(path)
    path.write_text("model:\n  num_wheels: 4\n")
    program.run(config=path).refuses(f"{path}:2", "num_wheels")


def test_a_missing_order_file(program: Program):
    program.run(dataset_order=program.folder / "order.bin").refuses(program.folder / "order.bin")


# datasets that do not fit the run -------------------------------------------------------------------------------


def test_a_dataset_made_with_another_tokenizer(program: Program):
    program.run(vocab_size=IDS + 1).refuses(program.prefix, "another tokenizer", f"{IDS + 1} ids", f"{IDS + 2} ids")


def write_manifest(prefix: str, **changes: object) -> None:
    """Say something else of a dataset, in a manifest that is whole."""
    manifest = read_manifest(prefix)
    assert manifest is not None
    Path(prefix + ".manifest.json").write_text(dataclasses.replace(manifest, **changes).to_json())


def test_a_dataset_of_a_larger_vocabulary_with_manifest(program: Program):
    write_manifest(program.prefix, largest_id=700)
    program.run().refuses(program.prefix, "token id 700", f"ids 0 to {IDS}")


def test_a_dataset_of_a_larger_vocabulary_without_manifest(program: Program):
    Path(program.prefix + ".manifest.json").unlink()
    program.run(vocab_size=50).refuses(program.prefix + ".bin", "ids 0 to 50")


@pytest.mark.parametrize("size", [0, 1, 1000, -1, -2])
def test_a_truncated_bin(program: Program, size: int):
    path = Path(program.prefix + ".bin")
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:size])
    program.run().refuses(f"{path} is truncated", f"{path.stat().st_size} bytes", f"{whole} bytes")


def test_a_bin_that_is_too_long(program: Program):
    path = Path(program.prefix + ".bin")
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0\0")
    program.run().refuses(f"{path} is too long", f"{whole + 2} bytes", f"{whole} bytes")


def test_an_index_whose_sizes_do_not_match(program: Program):
    path = Path(program.prefix + ".idx")
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    program.run().refuses(path, f"{len(content) - 8} bytes", f"{len(content)} bytes")
    path.write_bytes(content[:20])
    program.run().refuses(f"{path} is truncated", "20 bytes")
    lengths = bytearray(content)
    lengths[34:38] = (5000).to_bytes(4, "little")
    path.write_bytes(lengths)
    program.run().refuses(f"{path} is damaged")
    path.write_bytes(b"x" * len(content))
    program.run().refuses(f"{path} is not a Megatron index")


def test_a_manifest_of_another_dataset(program: Program):
    path = Path(program.prefix + ".manifest.json")
    whole = path.read_text()
    path.write_text(whole.replace('"documents": 40', '"documents": 41'))
    program.run().refuses(path, "checksum")
    path.write_text(whole)
    write_manifest(program.prefix, tokens=3)
    program.run().refuses(path, "tokens 3")
    path.write_text("{")
    program.run().refuses(path)


def test_an_empty_split(program: Program):
    program.run(split="0,100,0").refuses("--split '0,100,0'", "the first above zero")
    program.run(split="999,1,0").refuses(program.prefix, "no documents for valid", "40 sequences", "--split")


@pytest.mark.parametrize("split", ["a,b,c", "", "-1,2,3", "0,0,0", "1,2,3,4", "nan,1,1"])
def test_a_split_that_is_none(program: Program, split: str):
    program.run(split=split).refuses("split")


def test_a_sequence_longer_than_the_data(program: Program):
    said = program.run(seq_length=5000, max_position_embeddings=5000)
    said.refuses(program.prefix, "--seq-length 5000", "5001", "tokens")


# layouts that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world_size", "changes", "parts"),
    [
        (3, {"tensor_model_parallel_size": 2}, ["3", "2"]),
        (1, {"pipeline_model_parallel_size": 2, "num_layers": 2}, ["1", "2"]),
        (6, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "num_layers": 2}, ["6", "4"]),
    ],
)
def test_a_world_size_that_the_layout_does_not_divide(
    program: Program, world_size: int, changes: dict, parts: list[str]
):
    program.run(world_size, **changes).refuses("parallel", *parts)


def test_a_global_batch_that_the_ranks_do_not_divide(program: Program):
    program.run(4, global_batch_size=6).refuses("--global-batch-size 6", "4")


def test_all_failed_rules_are_told_at_once_and_in_one_paragraph(program: Program):
    said = program.run(hidden_size=18, num_attention_heads=4, train_iters=..., lr=...)
    assert said.status == 1
    for part in ("--hidden-size 18", "--num-attention-heads 4", "--train-iters", "--lr"):
        assert part in said.err
    assert "Traceback" not in said.err


# checkpoints that do not fit ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(corpus: Path) -> Path:
    """A checkpoint of three iterations, made by the program as a user starts it."""
    flags = Program(corpus, None, None).line({"--save": corpus / "run", "--save-interval": 2})
    done = start(flags)
    assert done.status == 0, done.err
    return corpus / "run"


def start(flags: list[str], **environment: str) -> Said:
    """Start pretrain_gpt.py as a user does."""
    root = Path(pretrain_gpt.__file__).parent
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    done = subprocess.run(
        [sys.executable, "pretrain_gpt.py", *flags],
        cwd=root, env={**clean, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def test_the_good_checkpoint_resumes(program: Program, checkpoint: Path):
    said = program.run(load=checkpoint, train_iters=5, override_opt_param_scheduler=None)
    assert said.status == 0, said.err
    assert "iter_0000003: iteration 3, 6 samples consumed" in said.out
    said = program.run(load=checkpoint, finetune=None)
    assert said.status == 0, said.err
    assert "starting at iteration 0 (--finetune)" in said.out


def test_a_checkpoint_of_another_model_shape(program: Program, checkpoint: Path):
    said = program.run(load=checkpoint, hidden_size=32, num_layers=2, ffn_hidden_size=40)
    folder = checkpoint / "iter_0000003"
    said.refuses(folder, "num_layers 1 there, 2 here", "hidden_size 16 there, 32 here", "ffn_size 24 there, 40 here")


def test_a_checkpoint_of_another_vocabulary(program: Program, checkpoint: Path):
    Path(program.prefix + ".manifest.json").unlink()
    said = program.run(load=checkpoint, vocab_size=IDS + 50)
    said.refuses(checkpoint / "iter_0000003", f"vocabulary {IDS + 1} there, {IDS + 51} here")


def test_a_checkpoint_that_is_missing(program: Program, checkpoint: Path):
    missing = program.folder / "missing"
    program.run(load=missing, exit_on_missing_checkpoint=None).refuses(f"--load {missing}", "no checkpoint")
    program.run(load=checkpoint, ckpt_step=77).refuses("--ckpt-step 77", checkpoint, "[2, 3]")


def test_a_damaged_checkpoint(program: Program, checkpoint: Path):
    path = checkpoint / "iter_0000003" / "__0_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    try:
        said = program.run(load=checkpoint)
        said.refuses(path.parent, path.name, f"{len(content) - 100} bytes", f"{len(content)}", "[2]", "--ckpt-step")
        tracker = checkpoint / "latest_checkpointed_iteration.txt"
        tracker.write_text("")
        program.run(load=checkpoint).refuses(tracker, "--ckpt-step")
        tracker.write_text("3\n")
    finally:
        path.write_bytes(content)


def test_a_resume_with_other_data_or_another_schedule(program: Program, checkpoint: Path):
    program.run(load=checkpoint, seed=7).refuses(checkpoint / "iter_0000003", "data order", "--finetune")
    program.run(load=checkpoint, lr="2e-3").refuses("0.001 there, 0.002 now", "--lr")


def test_a_save_folder_that_is_a_file(program: Program):
    path = program.folder / "file"
    path.write_text("x")
    program.run(save=path).refuses(f"--save {path} cannot be written")
    program.run(save=path / "below").refuses(f"--save {path / 'below'} cannot be written")


def test_a_tensorboard_folder_that_is_a_file(program: Program):
    path = program.folder / "file"
    path.write_text("x")
    program.run(tensorboard_dir=path).refuses(f"--tensorboard-dir {path} cannot be written")


# as a user starts it --------------------------------------------------------------------------------------------


def test_a_process_ends_with_one_paragraph_and_status_1(program: Program):
    Path(program.prefix + ".bin").write_bytes(b"")
    said = start(program.line({}))
    said.refuses(f"{program.prefix}.bin is truncated", "0 bytes")
    assert said.err.count("\n") == 1, said.err


def test_the_configuration_is_refused_without_importing_torch(program: Program, monkeypatch: pytest.MonkeyPatch):
    said = start(program.line({"--seq-lenght": 5}), PYTHONPROFILEIMPORTTIME="1")
    errors = [line for line in said.err.splitlines() if not line.startswith("import time:")]
    replace(said, err="\n".join(errors) + "\n").refuses("--seq-lenght", "--seq-length")
    assert not any(line.rstrip().endswith("| torch") for line in said.err.splitlines())
