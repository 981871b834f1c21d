"""Every preset is a run that passes the rules, alone and combined."""

from pathlib import Path

import pytest

from megatron_ext.config import load_run_config
from megatron_ext.model.counts import parameter_counts

CONFIGS = Path(__file__).parents[3] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))
LAYOUTS = {"laptop": 4, "data-parallel": 8, "node-8gpu": 8, "cluster-tp8-pp4": 64}
PARAMETERS = {
    "tiny": 8_916_224,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "baichuan-7b": 7_000_559_616,
    "baichuan-13b": 13_264_901_120,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "chatglm2-6b": 6_243_584_000,
    "internlm-7b": 7_321_948_160,
    "telechat-7b": 7_200_018_432,
    "telechat-12b": 12_386_432_000,
    "baichuan2-7b": 7_505_973_248,
    "baichuan2-13b": 13_896_668_160,
    "deepseek-7b": 6_910_365_696,
    "deepseek-67b": 67_425_001_472,
    "internlm-20b": 20_088_714_240,
    "internlm2-20b": 19_861_149_696,
    "moss-moon-003": 16_717_980_160,
    "qwen-7b": 7_721_324_544,
    "qwen-72b": 72_287_920_128,
    "telechat-52b": 52_832_509_952,
    "tigerbot-13b": 13_312_087_040,
    "tigerbot-70b": 69_450_604_544,
    "xverse-13b": 13_717_652_480,
    "xverse-65b": 66_408_521_728,
    "yayi2-30b": 30_403_337_216,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "yuan2-2b": 2_088_724_480,
    "yuan2-51b": 51_842_105_344,
    "yuan2-102b": 102_577_954_816,
    "yuren-13b": 13_065_671_680,
    "ziya-13b": 13_091_886_080,
}
# Models whose layers do not divide over the stages of a layout as it stands: what makes them fit.
CHUNKS_OF_FIVE = ["--num-virtual-stages-per-pipeline-rank", "3"]
COUNTED_HEAD = ["--account-for-loss-in-pipeline-split"]
COUNTED = [*COUNTED_HEAD, "--account-for-embedding-in-pipeline-split"]
FITTED = {
    ("tiny", "cluster-tp8-pp4"): ["--num-layers", "8"],
    ("internlm-20b", "cluster-tp8-pp4"): CHUNKS_OF_FIVE,
    ("yi-34b", "cluster-tp8-pp4"): CHUNKS_OF_FIVE,
    # 30 + 2 = 8 x 4, 38 + 2 = 8 x 5, 70 + 2 = 8 x 9, 95 + 1 = 8 x 12 = 2 x 48
    **{(model, "cluster-tp8-pp4"): COUNTED for model in ("bloom-7b1", "telechat-7b", "deepseek-7b")},
    ("telechat-12b", "cluster-tp8-pp4"): COUNTED,
    ("bloom-176b", "cluster-tp8-pp4"): COUNTED,
    ("deepseek-67b", "cluster-tp8-pp4"): COUNTED_HEAD,
    ("deepseek-67b", "laptop"): COUNTED_HEAD,
    # 28 layers in eight chunks: those with the embedding and with the head, which costs a layer, are of the small ones
    ("chatglm2-6b", "cluster-tp8-pp4"): ["--pipeline-model-parallel-layout", "Et*3|(t*4|)*2t*3|(t*4|)*2t*3|t*3L"],
    ("yuan2-102b", "cluster-tp8-pp4"): ["--num-virtual-stages-per-pipeline-rank", "3"],
    ("yuan2-51b", "cluster-tp8-pp4"): ["--pipeline-model-parallel-layout", "Et*5|(t*5|)*4(t*6|)*2t*5L"],
    ("moss-moon-003", "cluster-tp8-pp4"): ["--pipeline-model-parallel-layout", "Et*4|(t*4|)*3(t*5|)*2t*4|t*4L"],
}
UNEVEN = {
    ("bloom-7b1", "cluster-tp8-pp4"): ((3, 4), (4, 4), (4, 4), (4, 3)),
    ("telechat-12b", "cluster-tp8-pp4"): ((4, 5), (5, 5), (5, 5), (5, 4)),
    ("bloom-176b", "cluster-tp8-pp4"): ((8, 9), (9, 9), (9, 9), (9, 8)),
    ("deepseek-67b", "cluster-tp8-pp4"): ((12, 12), (12, 12), (12, 12), (12, 11)),
    ("deepseek-67b", "laptop"): ((48,), (47,)),
    ("chatglm2-6b", "cluster-tp8-pp4"): ((3, 4), (4, 4), (4, 3), (3, 3)),
    ("yuan2-51b", "cluster-tp8-pp4"): ((5, 5), (5, 6), (5, 6), (5, 5)),
    ("moss-moon-003", "cluster-tp8-pp4"): ((4, 5), (4, 5), (4, 4), (4, 4)),
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
    # the published sizes, with the published rows of the vocabulary; 8000 entries for the demo's model
    rows = run.model.padded_vocab_size or run.model.vocab_size or 8000
    assert parameter_counts(run.model, rows).total == PARAMETERS[name]
    first_line = (CONFIGS / "models" / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    assert name == "tiny" or f" {PARAMETERS[name]:,} parameters" in first_line


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "laptop"])
def test_layouts_for_gpus_have_the_flags_of_published_records(layout):
    argv = [*config("models", "llama2-7b"), *config("parallel", layout), *config("train", "llama2")]
    parallel = load_run_config(argv, LAYOUTS[layout], "model").run.parallel
    assert parallel.use_distributed_optimizer and parallel.overlap_grad_reduce and parallel.overlap_param_gather
    assert parallel.sequence_parallel == (parallel.tensor_model_parallel_size > 1)
    # megatron-core's own choice grows with the number of data-parallel ranks
    assert parallel.ddp_bucket_size is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("train", sorted(path.stem for path in (CONFIGS / "train").glob("*.yaml")))
@pytest.mark.parametrize("model", MODELS)
def test_presets_combine(model, layout, train):
    argv = [*config("models", model), *config("parallel", layout), *config("train", train), *DATA]
    argv += FITTED.get((model, layout), [])
    alone = load_run_config(config("models", model), None, "model").run.model
    if alone.max_position_embeddings < 4096:  # the length of configs/train
        argv += ["--max-position-embeddings", "4096"]
    if layout in {"cluster-tp8-pp4", "data-parallel"} and train == "debug":
        argv += ["--global-batch-size", "16"]
    run = load_run_config(argv, LAYOUTS[layout]).run
    assert run.data_parallel_size >= 1 and run.num_microbatches >= 1
    assert sum(run.layers_per_stage) == run.model.num_layers
    assert run.layers_per_chunk == UNEVEN.get((model, layout), run.layers_per_chunk)
