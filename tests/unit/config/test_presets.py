"""Every preset is a run that passes the rules, alone and combined."""

from pathlib import Path

import pytest

from megatron_ext.config import load_run_config
from megatron_ext.model.counts import parameter_counts

CONFIGS = Path(__file__).parents[3] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))
LAYOUTS = {"laptop": 4, "node-8gpu": 8, "cluster-tp8-pp4": 64}
PARAMETERS = {
    "tiny": 8_916_224,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "baichuan-7b": 7_000_559_616,
    "baichuan-13b": 13_264_901_120,
}
DATA = ["--data-path", "x", "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "t.model"]


def config(kind, name):
    return ["--config", str(CONFIGS / kind / f"{name}.yaml")]


def test_every_preset_is_tested():
    assert set(MODELS) == set(PARAMETERS)
    assert {path.stem for path in (CONFIGS / "parallel").glob("*.yaml")} == set(LAYOUTS)


@pytest.mark.parametrize("name", MODELS)
def test_model_presets_hold_the_architecture_only_and_have_the_published_size(name):
    resolved = load_run_config(config("models", name), None, "model")
    run = resolved.run
    changed = {field for field, source in resolved.sources.items() if source != "default"}
    assert changed <= set(vars(run.model))
    # the published sizes; 8000 entries for the demo's model
    assert parameter_counts(run.model, run.model.vocab_size or 8000).total == PARAMETERS[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("train", sorted(path.stem for path in (CONFIGS / "train").glob("*.yaml")))
@pytest.mark.parametrize("model", MODELS)
def test_presets_combine(model, layout, train):
    argv = [*config("models", model), *config("parallel", layout), *config("train", train), *DATA]
    if model == "tiny":
        argv += ["--max-position-embeddings", "4096"]
        if layout == "cluster-tp8-pp4":
            argv += ["--num-layers", "8"]
    if layout == "cluster-tp8-pp4" and train == "debug":
        argv += ["--global-batch-size", "16"]
    run = load_run_config(argv, LAYOUTS[layout]).run
    assert run.data_parallel_size >= 1 and run.num_microbatches >= 1
