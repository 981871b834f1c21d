"""The label rules M0-M8: which tokens of a laid-out row the model learns, one function each.

A rule maps the spans of a row to a code each (megatron_ext/data/store/loss_mask.py). The code of a token says what is
learned where that token is to be predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_ext.data.rows.spans import Part, Role, Span
from megatron_ext.data.store.loss_mask import LEARNED, LEARNED_AS_EOD, NOT_LEARNED

LabelRule = Callable[[Sequence[Span]], list[int]]

_ANSWER_PARTS = (Part.TEXT, Part.END, Part.EOS)
_GIVEN_ROLES = (Role.SYSTEM, Role.TOOL)


def label_all(spans: Sequence[Span]) -> list[int]:
    """M0: every token.

    Source: wp931120/baichuan_sft_lora, whose labels are its inputs; every pretraining.
    """
    return [LEARNED for _ in spans]


def label_completion(spans: Sequence[Span]) -> list[int]:
    """M1: everything except what the prompt is made of; a beginning-of-text token is learned.

    Source: pleisto/yuren-13b, tools/prepare_dataset (the context's labels are ignored, bos keeps its label).
    """
    return [_code(span.role is Role.ASSISTANT or span.part is Part.BOS) for span in spans]


def label_answers(spans: Sequence[Span]) -> list[int]:
    """M2: the text, end mark and eos of every answer.

    Source: pleisto/yuren-13b, tools/prepare_dataset; LianjiaTech/BELLE, train/src/sample_generator.py.
    """
    return [_code(_in_answer(span)) for span in spans]


def label_last_answer(spans: Sequence[Span]) -> list[int]:
    """M3: the text, end mark and eos of the last answer.

    Source: Tele-AI/TeleChat-52B, deepspeed-finetune/utils/data/data_utils.py. The published mask is as long as the
    prompt instead of the answer; here it is as long as the answer.
    """
    last = max((span.turn for span in spans if _in_answer(span)), default=-1)
    return [_code(_in_answer(span) and span.turn == last) for span in spans]


def label_answers_and_turn_ends(spans: Sequence[Span]) -> list[int]:
    """M4: M2, and where a user's mark follows an answer the end-of-document id is learned in its place.

    Source: baichuan-inc/Baichuan2, fine-tune/fine-tune.py. It labels the first user token too, where its rows begin
    and nothing is predicted; in a stream of documents that position would teach a second end, so it is not learned.
    """
    codes = label_answers(spans)
    answered = False
    for place, span in enumerate(spans):
        if span.part is Part.MARK and span.role is Role.USER and answered:
            codes[place] = LEARNED_AS_EOD
        answered = answered or _in_answer(span)
    return codes


def label_answers_and_marks(spans: Sequence[Span]) -> list[int]:
    """M5: from the assistant's mark to its end mark, both included, and the user's mark.

    Source: Tele-AI/Telechat, deepspeed-telechat/sft/main.py.
    """

    def learned(span: Span) -> bool:
        if span.role is Role.ASSISTANT:
            return span.part is not Part.GAP
        return span.role is Role.USER and span.part is Part.MARK

    return [_code(learned(span)) for span in spans]


def label_structure(spans: Sequence[Span]) -> list[int]:
    """M6: marks, end marks, the gaps after them, and answers; not role names, nor any other text.

    Source: QwenLM/Qwen, finetune.py, where the line break after a role name is not learned and the one after an end
    mark is.
    """

    def learned(span: Span) -> bool:
        if span.part in (Part.MARK, Part.END, Part.GAP):
            return True
        return span.role is Role.ASSISTANT and span.part in (Part.TEXT, Part.EOS)

    return [_code(learned(span)) for span in spans]


def label_except_given(spans: Sequence[Span]) -> list[int]:
    """M7: everything except the system text and what tools answered; the marks around a tool's answer are learned.

    Source: OpenMOSS/MOSS, finetune_moss.py.
    """
    return [_code(not (span.role in _GIVEN_ROLES and span.part in (Part.TEXT, Part.BREAK))) for span in spans]


def label_after_separator(spans: Sequence[Span]) -> list[int]:
    """M8: what comes after the first separator, which stands where the assistant's mark does; all of a row without.

    Source: IEIT-Yuan/Yuan-2.0, docs/data_process.md and megatron/utils.py (sft_stage). The published mask begins with
    the separator itself, which the user types; here it begins after it.
    """
    places = [place for place, span in enumerate(spans) if span.part is Part.MARK and span.role is Role.ASSISTANT]
    first = places[0] + 1 if places else 0
    return [_code(place >= first) for place in range(len(spans))]


def _in_answer(span: Span) -> bool:
    return span.role is Role.ASSISTANT and span.part in _ANSWER_PARTS


def _code(learned: bool) -> int:
    return LEARNED if learned else NOT_LEARNED


_RULES: tuple[tuple[str, str, LabelRule], ...] = (
    ("m0", "all", label_all),
    ("m1", "completion", label_completion),
    ("m2", "answers", label_answers),
    ("m3", "last-answer", label_last_answer),
    ("m4", "answers-and-turn-ends", label_answers_and_turn_ends),
    ("m5", "answers-and-marks", label_answers_and_marks),
    ("m6", "structure", label_structure),
    ("m7", "except-given", label_except_given),
    ("m8", "after-separator", label_after_separator),
)
LABEL_RULES: dict[str, LabelRule] = {name: rule for short, long, rule in _RULES for name in (short, long)}
"""Every rule by its short and by its speaking name."""
LABEL_RULE_NAMES: tuple[tuple[str, str], ...] = tuple((short, long) for short, long, _ in _RULES)
"""(short name, speaking name) of each rule."""
