"""The table of row formats is consistent with the templates and rules it names."""

from __future__ import annotations

from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.rows.labels import LABEL_RULES
from megatron_ext.data.rows.published_templates import TEMPLATES


def test_names_in_the_table_exist():
    for name, row_format in ROW_FORMATS.items():
        assert row_format.name == name
        assert row_format.default_rule in {"", *LABEL_RULES}
        assert row_format.default_template in {"", *TEMPLATES}
        assert set(row_format.templates or ()) <= set(TEMPLATES)
        assert set(row_format.optional) <= set(row_format.fields)
        assert bool(row_format.default_keys) != bool(row_format.fields)


def test_every_format_but_texts_learns_by_some_rule():
    for row_format in ROW_FORMATS.values():
        has_rule = bool(row_format.default_rule or row_format.default_template)
        assert has_rule is not bool(row_format.default_keys)
