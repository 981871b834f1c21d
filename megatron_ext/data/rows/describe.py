"""What row formats, chat templates and label rules there are, told for --help."""

from __future__ import annotations

from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.rows.labels import LABEL_RULE_NAMES, LABEL_RULES
from megatron_ext.data.rows.published_templates import TEMPLATES


def describe_forms() -> str:
    """One line for each row format, chat template and label rule, with what is used when nothing is said."""
    lines = ["row formats (--row-format):"]
    for row_format in ROW_FORMATS.values():
        notes = []
        if row_format.default_template:
            notes.append(f"template {row_format.default_template}")
        if row_format.default_rule:
            notes.append(f"rule {row_format.default_rule}")
        note = f" [{', '.join(notes)}]" if notes else ""
        lines.append(f"  {row_format.name:<14} {row_format.reads}{note}")
    lines += ["", "chat templates (--chat-template), with their label rule and special tokens (--special-token):"]
    for template in TEMPLATES.values():
        names = " ".join(template.special_names) or "none"
        lines.append(f"  {template.name:<14} {template.default_rule}; {names}")
    lines += ["", "label rules (--label-rule), by either name:"]
    for short, long in LABEL_RULE_NAMES:
        told = (LABEL_RULES[short].__doc__ or "").partition("\n")[0].partition(": ")[2]
        lines.append(f"  {short}  {long:<22} {told}")
    return "\n".join(lines)
