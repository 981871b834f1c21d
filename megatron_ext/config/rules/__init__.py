"""Rules that join settings, one small function each; all run, all failures are told together.

A rule is a function in one of the files beside this one; `RULES` lists them all once this package is imported.
"""

from __future__ import annotations

from megatron_ext.config.rules import (
    batch,
    blend,
    data_parallel,
    files,
    layout,
    model,
    pipeline_split,
    rope_scaling,
    schedule,
    seq_length,
)
from megatron_ext.config.rules.registry import RULES, Rule, check_rules, failures, rule

__all__ = [
    "RULES",
    "Rule",
    "batch",
    "blend",
    "check_rules",
    "data_parallel",
    "failures",
    "files",
    "layout",
    "model",
    "pipeline_split",
    "rope_scaling",
    "rule",
    "schedule",
    "seq_length",
]
