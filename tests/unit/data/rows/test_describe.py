"""--help names every row format, template and rule, on lines that a terminal can show."""

from __future__ import annotations

from megatron_ext.data.rows.describe import describe_forms
from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.rows.labels import LABEL_RULES
from megatron_ext.data.rows.published_templates import TEMPLATES


def test_everything_is_described():
    words = set(describe_forms().split())
    assert {*ROW_FORMATS, *TEMPLATES, *LABEL_RULES} <= words
    assert all(len(line) <= 140 for line in describe_forms().splitlines())
