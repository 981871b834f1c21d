"""Exported folders load in both generations of transformers, with the training logits and the training ids."""

from __future__ import annotations

import functools
import sys

import pytest
import sentencepiece
import torch

from checkpoint_convert.architectures import architecture_for_model
from checkpoint_convert.parity import parity_tokens, reloaded
from checkpoint_convert.tokenizer_files import SAMPLES
from megatron_ext.checkpoint.full import open_full
from tests.e2e.exported_folders import CASES, checkpoints, exported, run
from tests.e2e.transformers457_env import interpreter
from tests.unit.model.textbook import textbook_logits

pytestmark = pytest.mark.e2e

GENERATIONS = {"4.57.6": lambda: str(interpreter()), "5.": lambda: sys.executable}
TOKENS = parity_tokens(699, 64, 64)


@functools.cache
def loaded(case: str, generation: str):
    """Logits and findings of one exported folder under one generation of transformers."""
    own_code = case.startswith("baichuan")
    return reloaded(exported(case), TOKENS, SAMPLES, own_code, python=GENERATIONS[generation]())


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_formula_in_either_generation(case, generation):
    logits, findings = loaded(case, generation)
    assert findings["transformers"].startswith(generation)
    checkpoint = open_full(checkpoints() / case)
    assert findings["model_class"] == architecture_for_model(checkpoint.run.model).hf_class
    assert findings["stored_dtype"] == "float32"
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    wanted = textbook_logits(checkpoint.run.model, weights, torch.tensor(TOKENS))[..., : checkpoint.vocab_size]
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_ids_and_texts_are_those_of_sentencepiece_in_either_generation(generation):
    _, findings = loaded("llama", generation)
    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoints() / "tokenizer.model"))
    assert findings["ids"] == [model.encode(text) for text in SAMPLES]
    assert findings["decoded"] == [model.decode(ids) for ids in findings["ids"]]
    eod = model.piece_to_id("<eod>")
    assert findings["special"] == {"bos": 1, "eos": eod, "pad": 3, "unk": 0}
    assert findings["tokenizer_length"] == 699


@pytest.mark.parametrize("case", CASES)
def test_both_generations_agree_and_continue_alike(case):
    (old, old_findings), (new, new_findings) = (loaded(case, generation) for generation in GENERATIONS)
    assert (old - new).abs().max() <= 1e-6 * new.abs().max()
    assert old_findings["continuation"] == new_findings["continuation"]
    assert old_findings["parameters"] == new_findings["parameters"]


def test_our_modelling_file_keeps_its_promises_under_the_older_generation():
    tests = "tests/unit/checkpoint_convert/modeling/test_modeling_baichuan.py"
    done = run([str(interpreter()), "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", tests])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    version = run([str(interpreter()), "-c", "import transformers; print(transformers.__version__)"])
    assert version.stdout.strip() == "4.57.6"
