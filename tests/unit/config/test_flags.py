"""Flags come from the fields; a typing error is answered with the nearest flag."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.config.flags import build_parser, parse_command_line
from megatron_ext.config.load import resolve
from megatron_ext.config.run import all_settings
from megatron_ext.errors import ConfigError

MEGATRON_FLAGS = [
    line for line in (Path(__file__).parent / "megatron_flags.txt").read_text().split("\n") if line.startswith("--")
]


def example(setting):
    if setting.knob.choices:
        return [setting.knob.choices[-1]]
    if setting.knob.length:
        return ["3"] * setting.knob.length
    return {"integer": ["3"], "number": ["0.5"], "text": ["word"], "integers": ["3"], "words": ["a", "b"]}[setting.kind]


def try_resolve(*argv):
    return resolve(argv, None)


@pytest.mark.parametrize("setting", all_settings().values(), ids=lambda s: s.name)
def test_every_flag_sets_its_field_and_is_recorded_as_the_source(setting):
    if setting.off_flags:
        for flags, value in ((setting.on_flags, True), (setting.off_flags, False)):
            for flag in flags:
                resolved = try_resolve(flag)
                assert resolved.run.get(setting.name) is value
                assert resolved.sources[setting.name] == flag
    else:
        words = ["1000"] if setting.name == "min_loss_scale" else example(setting)
        words = (
            ["3.5"]
            if setting.name in ("rotary_base", "rope_scaling_factor", "loss_scale", "initial_loss_scale")
            else words
        )
        resolved = try_resolve(setting.flag, *words)
        assert resolved.run.get(setting.name) != setting.default
        assert resolved.sources[setting.name] == setting.flag
        assert sum(source != "default" for source in resolved.sources.values()) == 1


@pytest.mark.parametrize("setting", all_settings().values(), ids=lambda s: s.name)
def test_help_names_every_flag(setting):
    text = build_parser().format_help()
    assert setting.flag in text


def test_help_tells_defaults_and_units():
    text = " ".join(build_parser().format_help().split())
    assert "--log-interval LOG_INTERVAL steps between console lines [iterations] (default: 100)" in text
    assert "[iterations] (default: 1)" in text
    assert "rotated (default: 1.0)" in text
    assert "of the last rank (default: 0)" in text


def test_equal_sign_and_repeated_flags():
    assert try_resolve("--lr=1e-4", "--lr", "2e-4").run.optim.lr == 2e-4
    assert try_resolve("--data-path", "0.3", "a", "0.7", "b").run.data.data_path == ("0.3", "a", "0.7", "b")


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("--tensor-parallel-size", "--tensor-model-parallel-size"),
        ("--pipeline-parallel-size", "--pipeline-model-parallel-size"),
        ("--micro-batchsize", "--micro-batch-size"),
        ("--layernorm-epsilon", "--norm-epsilon"),
        ("--num_layers", "--num-layers"),
        ("--keep-last", "--save-keep-last"),
        ("--train-iter", "--train-iters"),
        ("--conf", "--config"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one(typed, suggestion):
    with pytest.raises(ConfigError) as error:
        parse_command_line([typed, "2"])
    assert str(error.value) == f"unknown flag {typed}; did you mean {suggestion}?"


def test_abbreviations_are_not_taken():
    with pytest.raises(ConfigError, match="unknown flag --hidden"):
        try_resolve("--hidden", "64")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr"], "--lr: expected one argument"),
        (["--lr", "fast"], "--lr is 'fast'; expected number"),
        (["--lr", "-1"], r"--lr is -1.0; expected number in \(0, inf\)"),
        (["--num-layers", "2.5"], "--num-layers is '2.5'; expected integer"),
        (["--normalization", "rms"], "--normalization is 'rms'; expected one of LayerNorm, RMSNorm"),
        (["--rampup-batch-size", "1", "2"], r"expected 3 integers in \[1, inf\)"),
        (["--swiglu=yes"], "--swiglu/--no-swiglu: ignored explicit argument"),
        (["--swiglu", "true"], "unexpected word 'true'"),
        (["-lr", "3"], "unknown flag -lr"),
        (["--wandb-project", "x"], "--wandb-project is not accepted: metrics go to"),
        (["--muon-tp-mode", "blockwise"], "--muon-tp-mode is not accepted: muon orthogonalises whole matrices"),
        (["--use-rotary-position-embeddings"], "use --position-embedding-type rope"),
        (["--use-flash-attn"], "--use-flash-attn is not accepted: "),
    ],
)
def test_wrong_words_are_told_with_the_flag(argv, message):
    with pytest.raises(ConfigError, match=message):
        try_resolve(*argv)


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        try_resolve("--lr", "x", "--num-layers", "0", "--seed", "-5")
    assert str(error.value).count("\n  - ") == 3


def test_the_names_differ_from_megatron_only_where_megatron_has_none():
    ours = {s.flag for s in all_settings().values()} - set(MEGATRON_FLAGS)
    assert ours == {
        "--add-attention-output-bias", "--add-mlp-down-bias", "--add-mlp-up-bias", "--compile",
        "--embedding-layernorm",
        "--localized-filtering", "--add-output-layer-bias",
        "--original-max-position-embeddings", "--parallel-residual", "--rope-scaling-attention-factor",
        "--rope-scaling-beta-fast", "--rope-scaling-beta-slow", "--rope-scaling-high-freq-factor",
        "--rope-scaling-low-freq-factor", "--rope-scaling-type",
        "--allow-older-checkpoint", "--norm-head", "--embedding-multiplier", "--logits-multiplier",
        "--max-z-loss-weight", "--neftune-noise-alpha", "--no-cross-entropy-loss-fusion",
        "--blend-reference-losses", "--blend-reweight-floor", "--blend-reweight-interval",
        "--blend-reweight-rate", "--blend-schedule", "--dataset-order", "--dataset-packing", "--device",
        "--deterministic-data-parallel", "--deterministic-data-parallel-parts",
        "--log-sample-ids", "--no-exit-signal-handler",
        "--no-progress", "--num-threads", "--pad-last-sample", "--save-keep-last", "--seq-length-warmup",
            "--lion-beta1", "--lion-beta2", "--max-skipped-iterations", "--lr-multi-step-points", "--train-tokens",
            "--lr-decay-tokens", "--lr-warmup-tokens", "--lr-wsd-decay-tokens", "--lr-multipliers",
            "--weight-decay-multipliers", "--freeze", "--train-only",
        }  # fmt: skip


def test_reading_a_configuration_imports_no_torch_and_no_numpy():
    code = (
        "import sys; from megatron_ext.config import load_run_config; import megatron_ext.model.counts\n"
        "load_run_config(['--num-layers', '2', '--hidden-size', '8', '--num-attention-heads', '2'], 1, 'model')\n"
        "heavy = {'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
