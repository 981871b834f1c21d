"""The chat templates of Chinese open models, as their makers publish them; only data, and where it comes from.

Which texts are encoded together is part of a template, because tokens at a seam depend on it: a piece that is `joined`
is encoded together with the piece before it, every other piece apart. A tokenizer that finds special tokens inside
texts (a tokenizer.json does) finds them here too, as in the published code.
"""

from __future__ import annotations

from megatron_ext.data.rows.spans import Part, Role
from megatron_ext.data.rows.templates import END_OF_SENTENCE, JOINED_TEXT, TEXT, ChatTemplate, Piece, end, mark

_SYSTEM, _USER, _ASSISTANT, _TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
_NEWLINE_BEFORE_TEXT = Piece(Part.BREAK, "\n")
_NEWLINE_AFTER_END = Piece(Part.GAP, "\n")
_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"


def _chatml_message(role: Role) -> tuple[Piece, ...]:
    name = Piece(Part.NAME, role.value)
    return (mark(_IM_START), name, _NEWLINE_BEFORE_TEXT, TEXT, end(_IM_END), _NEWLINE_AFTER_END)


CHATML = ChatTemplate(
    name="chatml",
    source="QwenLM/Qwen, tokenization_note.md and finetune.py (layout; role name, line break and text encoded apart); "
    "01-ai/Yi (the same layout without a default system message, prompts not learned)",
    default_rule="m2",
    messages={role: _chatml_message(role) for role in (_SYSTEM, _USER, _ASSISTANT, _TOOL)},
)

QWEN = ChatTemplate(
    name="qwen",
    source="QwenLM/Qwen, finetune.py. The published code puts its default system message before every conversation and "
    "passes over the row's own; here the row's own takes its place",
    default_rule="m6",
    messages={role: _chatml_message(role) for role in (_SYSTEM, _USER, _ASSISTANT)},
    default_system="You are a helpful assistant.",
)


def _yuren_question(name: str) -> tuple[Piece, ...]:
    """A question opens its answer; the line break before it belongs to it."""
    return (
        _NEWLINE_AFTER_END,
        mark(_IM_START),
        Piece(Part.NAME, name),
        Piece(Part.BREAK, "\n", joined=True),
        JOINED_TEXT,
        end(_IM_END),
        _NEWLINE_AFTER_END,
        mark(_IM_START, _ASSISTANT),
        Piece(Part.NAME, "assistant", role=_ASSISTANT),
        Piece(Part.BREAK, "\n", joined=True, role=_ASSISTANT),
    )


YUREN = ChatTemplate(
    name="yuren",
    source="pleisto/yuren-13b, tools/prepare_dataset/src/prepare_dataset/__main__.py. Role name, line break and text "
    "are encoded together, except the answer's text",
    default_rule="m2",
    messages={
        _SYSTEM: (
            mark(_IM_START),
            Piece(Part.NAME, "system"),
            Piece(Part.BREAK, "\n", joined=True),
            JOINED_TEXT,
            end(_IM_END),
        ),
        _USER: _yuren_question("user"),
        _TOOL: _yuren_question("function"),
        _ASSISTANT: (TEXT, end(_IM_END), END_OF_SENTENCE),
    },
)

BELLE = ChatTemplate(
    name="belle",
    source="LianjiaTech/BELLE, train/src/sample_generator.py (layout: question with both marks encoded together, no "
    "bos) and train/scripts/convert_to_conv_data.py (input follows the instruction at once)",
    default_rule="m2",
    messages={
        _USER: (
            Piece(Part.MARK, "Human: \n"),
            JOINED_TEXT,
            Piece(Part.MARK, "\n\nAssistant: \n", joined=True, role=_ASSISTANT),
        ),
        _ASSISTANT: (TEXT, END_OF_SENTENCE),
    },
)

ALPACA = ChatTemplate(
    name="alpaca",
    source="shibing624/MedicalGPT, training/template.py, template alpaca (headings); tatsu-lab/stanford_alpaca (input "
    "under a heading of its own, answer and eos learned). The long introduction is left to --system-text",
    default_rule="m2",
    messages={
        _SYSTEM: (TEXT, Piece(Part.GAP, "\n\n", joined=True)),
        _USER: (
            Piece(Part.MARK, "### Instruction:\n", joined=True),
            JOINED_TEXT,
            Piece(Part.MARK, "\n\n### Response:\n", joined=True, role=_ASSISTANT),
        ),
        _ASSISTANT: (TEXT, END_OF_SENTENCE),
    },
    input_joiner="\n\n### Input:\n",
)

BAICHUAN = ChatTemplate(
    name="baichuan",
    source="baichuan-inc/Baichuan-13B-Chat (Hugging Face), generation_utils.py (ids 195 and 196, pieces <reserved_102> "
    "and <reserved_103>, system text in front); shibing624/MedicalGPT, training/template.py, template baichuan (eos "
    "after each answer)",
    default_rule="m2",
    messages={
        _SYSTEM: (TEXT,),
        _USER: (mark("<reserved_102>"), TEXT),
        _ASSISTANT: (mark("<reserved_103>"), TEXT, END_OF_SENTENCE),
    },
)

BAICHUAN2 = ChatTemplate(
    name="baichuan2",
    source="baichuan-inc/Baichuan2, fine-tune/fine-tune.py (ids 195 and 196, pieces <reserved_106> and <reserved_107>; "
    "one eos, at the very end); system text in front as in Baichuan2-13B-Chat (Hugging Face), generation_utils.py",
    default_rule="m4",
    messages={
        _SYSTEM: (TEXT,),
        _USER: (mark("<reserved_106>"), TEXT),
        _ASSISTANT: (mark("<reserved_107>"), TEXT),
    },
    closing=(END_OF_SENTENCE,),
)

TELECHAT = ChatTemplate(
    name="telechat",
    source="Tele-AI/Telechat, deepspeed-telechat/utils/data/data_utils.py (7B and 12B: marks are tokens)",
    default_rule="m5",
    messages={_USER: (mark("<_user>"), TEXT), _ASSISTANT: (mark("<_bot>"), TEXT, end("<_end>"))},
)

TELECHAT_52B = ChatTemplate(
    name="telechat-52b",
    source="Tele-AI/TeleChat-52B, deepspeed-finetune/utils/data/data_utils.py (marks are plain text; the last answer "
    "ends with eos instead of its end mark)",
    default_rule="m3",
    messages={
        _USER: (
            Piece(Part.MARK, "<_user>"),
            JOINED_TEXT,
            Piece(Part.MARK, "<_bot>", joined=True, role=_ASSISTANT),
        ),
        _ASSISTANT: (TEXT, Piece(Part.END, "<_end>", joined=True)),
    },
    last_answer=(TEXT, END_OF_SENTENCE),
)

XVERSE = ChatTemplate(
    name="xverse",
    source="shibing624/MedicalGPT, training/template.py, and hiyouga/LLaMA-Factory, template xverse (question with "
    "both marks encoded together, system text in front, eos after each answer)",
    default_rule="m2",
    messages={
        _SYSTEM: (TEXT,),
        _USER: (
            Piece(Part.MARK, "Human: "),
            JOINED_TEXT,
            Piece(Part.MARK, "\n\nAssistant: ", joined=True, role=_ASSISTANT),
        ),
        _ASSISTANT: (TEXT, END_OF_SENTENCE),
    },
)


def _moss_message(mark_text: str, end_name: str) -> tuple[Piece, ...]:
    return (
        Piece(Part.MARK, mark_text),
        Piece(Part.BREAK, " ", joined=True),
        JOINED_TEXT,
        end(end_name),
        _NEWLINE_AFTER_END,
    )


MOSS_MARKS: dict[Role, tuple[str, str]] = {
    _USER: ("<|Human|>:", "<eoh>"),
    Role.THOUGHTS: ("<|Inner Thoughts|>:", "<eot>"),
    Role.COMMANDS: ("<|Commands|>:", "<eoc>"),
    _TOOL: ("<|Results|>:", "<eor>"),
    _ASSISTANT: ("<|MOSS|>:", "<eom>"),
}
"""What opens (plain text) and closes (a token) each message of MOSS."""

MOSS = ChatTemplate(
    name="moss",
    source="OpenMOSS/MOSS, README.md (marks) and finetune_moss.py (each message encoded in one go, meta instruction in "
    "front, of a tool's answer only its marks are learned)",
    default_rule="m7",
    messages={_SYSTEM: (TEXT,), **{role: _moss_message(*marks) for role, marks in MOSS_MARKS.items()}},
)

TEMPLATES: dict[str, ChatTemplate] = {
    template.name: template
    for template in (
        CHATML, QWEN, YUREN, BELLE, ALPACA, BAICHUAN, BAICHUAN2, TELECHAT, TELECHAT_52B, XVERSE, MOSS,
    )
}  # fmt: skip
"""Every template by the value of --chat-template."""
