"""How a chat template is written down, and how a conversation is laid out by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.spans import EOS, Message, Part, Role, Span


@dataclass(frozen=True)
class Piece:
    """One element of a laid-out message.

    Attributes:
        part: what it is; Part.TEXT stands for what the message says.
        text: its characters, or the name of a special token; nothing for Part.TEXT.
        special: `text` names a special token.
        joined: encoded together with the piece before it.
        role: the role it belongs to, where that is not the message's own: an opening of the answer that the published
            code puts at the end of the question.
    """

    part: Part
    text: str = ""
    special: bool = False
    joined: bool = False
    role: Role | None = None


TEXT = Piece(Part.TEXT)
JOINED_TEXT = Piece(Part.TEXT, joined=True)
END_OF_SENTENCE = Piece(Part.EOS, EOS, special=True)


def mark(name: str, role: Role | None = None) -> Piece:
    """A special token that opens a message."""
    return Piece(Part.MARK, name, special=True, role=role)


def end(name: str) -> Piece:
    """A special token that closes a message."""
    return Piece(Part.END, name, special=True)


@dataclass(frozen=True)
class ChatTemplate:
    """A published way to lay out conversations.

    Attributes:
        name: the value of --chat-template.
        source: where it is published.
        default_rule: the label rule of the published training code.
        messages: the pieces of a message, by role; a role without pieces has no place in the template.
        last_answer: the pieces of the last answer, where it differs.
        closing: pieces after the last message.
        default_system: system text of conversations without one; "" for none.
        input_joiner: what stands between instruction and input in one user message.
    """

    name: str
    source: str
    default_rule: str
    messages: Mapping[Role, tuple[Piece, ...]]
    last_answer: tuple[Piece, ...] | None = None
    closing: tuple[Piece, ...] = ()
    default_system: str = ""
    input_joiner: str = ""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names of the special tokens it uses, each once."""
        layouts = [*self.messages.values(), self.last_answer or (), self.closing]
        return tuple(dict.fromkeys(piece.text for layout in layouts for piece in layout if piece.special))

    def render(self, conversation: Sequence[Message]) -> list[Span]:
        """The spans of a conversation that ends with an answer.

        Raises:
            RecordError: a role has no place in this template.
        """
        if self.default_system and conversation[0].role is not Role.SYSTEM:
            conversation = [Message(Role.SYSTEM, self.default_system), *conversation]
        spans: list[Span] = []
        last = len(conversation) - 1
        for turn, message in enumerate(conversation):
            pieces = self.messages.get(message.role)
            if pieces is None:
                raise RecordError(
                    "bad conversation", f"chat template {self.name} has no place for a message of role {message.role}"
                )
            if turn == last and self.last_answer is not None:
                pieces = self.last_answer
            spans += _laid_out(pieces, message, turn)
        spans += _laid_out(self.closing, conversation[last], last)
        return spans


def _laid_out(pieces: Sequence[Piece], message: Message, turn: int) -> Iterator[Span]:
    own = message.role.writer
    for piece in pieces:
        text = piece.text
        if piece.part is Part.TEXT:
            text = message.text
        elif piece.part is Part.BREAK and message.lead is not None:
            text = message.lead
        yield Span(text, piece.part, piece.role or own, turn, piece.special, piece.joined)
