"""Every Megatron-LM flag either does something or is refused with a reason."""

from pathlib import Path

from megatron_ext.config.refused import refusal
from megatron_ext.config.run import all_settings

MEGATRON_FLAGS = [
    line for line in (Path(__file__).parent / "megatron_flags.txt").read_text().split("\n") if line.startswith("--")
]
ACCEPTED = {flag for s in all_settings().values() for flag in (*s.on_flags, *s.off_flags)} | {"--config"}


def test_every_megatron_flag_is_accepted_or_refused_with_a_reason():
    assert len(MEGATRON_FLAGS) > 600
    assert [flag for flag in MEGATRON_FLAGS if (flag in ACCEPTED) == (refusal(flag) is not None)] == []


def test_no_accepted_flag_is_in_the_table_of_refusals():
    assert [flag for flag in ACCEPTED if refusal(flag)] == []


def test_reasons_are_found_by_name_and_by_prefix():
    assert "rope" in (refusal("--use-rotary-position-embeddings") or "")
    assert "mixture of experts" in (refusal("--moe-anything") or "")
    assert "--reset-attention-mask" in (refusal("--no-create-attention-mask-in-dataloader") or "")
    assert refusal("--tensor-model-parallel-size") is None
    assert "--profile already" in (refusal("--use-pytorch-profiler") or "")
    assert refusal("--moe") is None
