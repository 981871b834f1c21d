"""tools/check_config.py prints what was resolved, from where, and every rule that fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def check_config(*argv):
    command = [sys.executable, "tools/check_config.py", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_model_preset_alone():
    result = check_config("--config", "configs/models/llama2-7b.yaml", "--purpose", "model")
    assert result.returncode == 0, result.stderr
    assert "6,738,415,616" in result.stdout
    words = [line.split() for line in result.stdout.splitlines()]
    assert ["num_layers", "32", "configs/models/llama2-7b.yaml:3"] in words
    assert ["log_interval", "100", "iterations", "default"] in words


def test_failures_are_listed_by_rule_and_end_with_status_1():
    result = check_config("--config", "configs/models/llama2-7b.yaml", "--bf16", "--fp16", "--world-size", 3)
    assert result.returncode == 1
    assert "rule one_half_precision_type: --bf16 and --fp16 exclude each other" in result.stdout
    assert "rule length_of_the_run_is_given: " in result.stdout


def test_world_size_and_derived_numbers():
    result = check_config(
        "--config", "configs/models/tiny.yaml", "--config", "configs/train/debug.yaml", "--data-path", "x",
        "--tokenizer-type", "NullTokenizer", "--vocab-size", 8000, "--world-size", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "data-parallel size 2" in words and "micro-batches per step and rank 2" in words
    assert "padded vocabulary (rows) 8,064" in words
    assert any(line.startswith("activations of a rank at once, at most ") and line.endswith(" MiB") for line in words)


def test_unequal_stages_are_shown_by_chunk():
    layout = ["--num-layers", 6, "--pipeline-model-parallel-size", 2, "--global-batch-size", 2]
    model = ["--config", "configs/models/tiny.yaml", "--purpose", "model", *layout]
    for more, shown in (
        ([], "3"),
        (["--decoder-first-pipeline-num-layers", 2], "2 4"),
        (["--pipeline-model-parallel-layout", "E|t*3|tt|tL"], "0+2 3+1"),
    ):
        result = check_config(*model, *more)
        assert result.returncode == 0, result.stdout
        assert f"layers per pipeline stage {shown}" in [" ".join(line.split()) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], "all of a model chunk"),
        (["--overlap-grad-reduce"], "64,000,000"),
        (["--overlap-grad-reduce", "--ddp-bucket-size", 1000], "1,000"),
    ],
)
def test_the_gradient_bucket_is_shown(argv, shown):
    preset = ["--config", "configs/models/llama2-7b.yaml", "--purpose", "model", "--world-size", 64]
    words = [" ".join(line.split()) for line in check_config(*preset, *argv).stdout.splitlines()]
    assert f"gradient bucket (parameters) {shown}" in words


def test_yaml_output_is_a_file_that_gives_the_same_run(tmp_path):
    argv = ["--config", "configs/models/baichuan-13b.yaml", "--lr", "3e-4", "--data-path", "1", "a", "2", "b"]
    first = check_config(*argv, "--yaml", "--purpose", "model")
    assert first.returncode == 0
    values = yaml.safe_load(first.stdout)
    assert values["optim"]["lr"] == 3e-4 and values["data"]["data_path"] == ["1", "a", "2", "b"]
    (tmp_path / "run.yaml").write_text(first.stdout)
    assert check_config("--config", tmp_path / "run.yaml", "--yaml", "--purpose", "model").stdout == first.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--world-size", "none"], "error: --world-size: 'none' is not a number of processes"),
        (["--nm-layers", "3"], "error: unknown flag --nm-layers; did you mean --num-layers?"),
        (["--purpose", "fun"], "error: --purpose: invalid choice"),
    ],
)
def test_wrong_words_are_one_paragraph_and_status_1(argv, message):
    result = check_config(*argv)
    assert result.returncode == 1
    assert result.stderr.startswith(message) and "Traceback" not in result.stderr


def test_help_lists_its_own_flags_and_all_settings():
    result = check_config("--help")
    assert result.returncode == 0
    assert "--world-size" in result.stdout and "--tensor-model-parallel-size" in result.stdout
