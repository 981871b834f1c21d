"""Rules that join settings, one small function each; all run, all failures are told together."""

from __future__ import annotations

from megatron_ext.config.rules import layout
from megatron_ext.config.rules.registry import RULES, Rule, check_rules, failures, rule

__all__ = ["RULES", "Rule", "check_rules", "failures", "layout", "rule"]
