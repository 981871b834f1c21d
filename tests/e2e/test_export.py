"""Checkpoint -> Hugging Face folder -> checkpoint by the two commands: bit-equal, gated, refused where it must be."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from megatron_ext.checkpoint.full import open_full
from tests.e2e.exported_folders import (
    CASES,
    EXPORT,
    IMPORT,
    checkpoints,
    exported,
    run,
    run_all,
    run_command,
    work_folder,
)

pytestmark = pytest.mark.e2e


@functools.cache
def imports() -> Path:
    """A folder with the import of every exported folder."""
    out = work_folder() / "imports"
    run_all(IMPORT, *(["--load", exported(case), "--save", out / case] for case in CASES))
    return out


BREAK_GATE = """
from checkpoint_convert import megatron_to_hf, rows
from megatron_ext.errors import run_command

def swapped(self, tensor, sizes):
    return tensor[sizes.f :], tensor[: sizes.f]

rows.Gated.to_hf = swapped
run_command(megatron_to_hf.main)
"""


@pytest.mark.parametrize("case", CASES)
def test_import_after_export_is_bit_equal(case):
    before, after = open_full(checkpoints() / case), open_full(imports() / case)
    assert after.names() == before.names()
    assert (after.vocab_size, after.iteration) == (before.vocab_size, 0)
    for name in before.names():
        assert torch.equal(after.read(name), before.read(name)), name
        assert after.dtype(name) == before.dtype(name)
    trained = dataclasses.replace(before.run.model, hidden_dropout=0.0, attention_dropout=0.0)
    assert dataclasses.replace(after.run.model, vocab_size=None) == trained
    assert [file.name for file in after.tokenizer_files] == ["tokenizer.model"]
    assert after.tokenizer_files[0].read_bytes() == before.tokenizer_files[0].read_bytes()


@pytest.mark.parametrize("case", ["llama", "baichuan_tied"])
def test_the_folder_holds_the_contract(case):
    folder = exported(case)
    names = set(os.listdir(folder))
    assert names >= {
        "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "special_tokens_map.json", "README.md", "training_provenance.json",
    }  # fmt: skip
    assert ("modeling_baichuan.py" in names) == case.startswith("baichuan")
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == 699
    assert (config["bos_token_id"], config["pad_token_id"]) == (1, 3)
    record = json.loads((folder / "training_provenance.json").read_text())
    assert record["parity"]["relative"] <= 1e-5
    assert record["origin"]["provenance"] == {"made_by": "a test"}
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in weight_map) == (case == "llama")
    assert os.listdir(folder.parent).count(case) == 1
    assert not [name for name in os.listdir(folder.parent) if "partial" in name]


def test_a_narrower_type_only_on_request_and_compared_as_exported(tmp_path):
    out = run_command(
        EXPORT, "--load", checkpoints() / "llama", "--save", tmp_path / "out", "--dtype", "bf16", check=True
    )
    assert "fp32 logits of the bfloat16 weights" in out.stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    run_command(IMPORT, "--load", tmp_path / "out", "--save", tmp_path / "back", check=True)
    before, after = open_full(checkpoints() / "llama"), open_full(tmp_path / "back")
    for name in before.names():
        assert torch.equal(after.read(name), before.read(name).to(torch.bfloat16)), name


def test_a_wrong_conversion_fails_the_export_and_publishes_nothing(tmp_path):
    line = [sys.executable, "-c", BREAK_GATE, "--load", str(checkpoints() / "llama"), "--save", str(tmp_path / "out")]
    done = run(line)
    assert done.returncode == 1
    assert "the exported model computes something else" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def refusal(command, *arguments) -> str:
    """The one paragraph on stderr of a command that must refuse."""
    done = run_command(command, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_wrong_requests_are_refused_before_a_byte_is_written(tmp_path):
    out = tmp_path / "out"
    source = checkpoints() / "llama"
    assert "is not empty" in refusal(EXPORT, "--load", source, "--save", exported("llama"))
    message = refusal(EXPORT, "--load", source, "--save", out, "--architecture", "baichuan")
    assert "position_embedding_type is 'rope', BaichuanForCausalLM needs 'alibi'" in message
    assert "num_query_groups is 2" in message
    assert "holds no checkpoint" in refusal(EXPORT, "--load", tmp_path / "nowhere", "--save", out)
    assert "--max-shard-size" in refusal(EXPORT, "--load", source, "--save", out, "--max-shard-size", "big")
    assert "is not a folder" in refusal(IMPORT, "--load", tmp_path / "nowhere", "--save", out)
    assert os.listdir(tmp_path) == []


def test_an_incomplete_folder_is_not_imported(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "9 missing: model.layers.2." in refusal(IMPORT, "--load", folder, "--save", tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 41}))
    assert "the model's settings make it [41, 24]" in refusal(IMPORT, "--load", folder, "--save", tmp_path / "out")
    assert not (tmp_path / "out").exists()
