"""Where the elements of a JSON array end, found in text that comes in pieces; knows quotes and brackets alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOP_LEVEL = re.compile(rb'["\[\]{},]')
_NESTED = re.compile(rb'["\[\]{}]')
_LINE_BEGIN = re.compile(rb"[ \t\r\n]*\n([ \t]*)([\[{])")
_OPENS = frozenset(b"[{")
_OPENER = {ord("}"): ord("{"), ord("]"): ord("[")}
_QUOTE, _COMMA, _CLOSE, _LINE_FEED, _BACKSLASH = b'",]\n\\'
_MAX_KNOWN_DEPTH = 4096  # deeper brackets are counted, not told apart; the parser takes 1024


class ElementScanner:
    """Reads the text behind the opening bracket of an array, or behind one of its commas.

    Attributes:
        closed: whether the array's closing bracket has been seen.
    """

    def __init__(self) -> None:
        self.closed = False
        self._open: list[int] = []  # brackets not closed yet
        self._deeper = 0  # brackets beyond those of `_open`
        self._in_string = False
        self._escaped = False  # the last piece ended between a backslash and what it stands before

    def marks(self, piece: bytes) -> Iterator[tuple[int, bool]]:
        """(offset in `piece`, True) for the end of each element: its comma, or the bracket that closes the array;
        (offset, False) where the element is seen to be broken. Who takes the next mark lets it go on as well as it can.
        """
        place = 0
        while place < len(piece) and not self.closed:
            if self._in_string:
                place = self._through_string(piece, place)
                if place < len(piece) and self._in_string:
                    yield place, False
                    place += 1
                continue
            match = (_NESTED if self._open else _TOP_LEVEL).search(piece, place)
            if match is None:
                return
            place, char = match.end(), piece[match.start()]
            if char == _QUOTE:
                self._in_string = True
            elif char in _OPENS:
                self._push(char)
            elif char == _COMMA or (char == _CLOSE and not self._open):
                self.closed = char == _CLOSE
                yield match.start(), True
            elif not self._pop(char):
                yield match.start(), False

    def _through_string(self, piece: bytes, place: int) -> int:
        """The offset behind the closing quote, of a line end (none may stand in a string), or of the piece's end."""
        if self._escaped and piece[place] != _LINE_FEED:
            place += 1
        self._escaped = False
        while True:
            quote = piece.find(b'"', place)
            stop = quote if quote >= 0 else len(piece)
            line_end = piece.find(b"\n", place, stop)
            if line_end >= 0:
                return line_end
            is_escaped = _num_backslashes(piece, place, stop) % 2 == 1
            if quote < 0:
                self._escaped = is_escaped
                return stop
            place = quote + 1
            if not is_escaped:
                self._in_string = False
                return place

    def _push(self, char: int) -> None:
        if len(self._open) < _MAX_KNOWN_DEPTH:
            self._open.append(char)
        else:
            self._deeper += 1

    def _pop(self, char: int) -> bool:
        """Close a bracket; False, and as many brackets closed as it takes, where it is not the one to be closed."""
        opener = _OPENER[char]
        if self._deeper:
            self._deeper -= 1
            return True
        if self._open and self._open[-1] == opener:
            self._open.pop()
            return True
        if opener in self._open:
            while self._open.pop() != opener:
                pass
        return False


def _num_backslashes(text: bytes, begin: int, end: int) -> int:
    """How many backslashes stand right before `end`."""
    if end == begin or text[end - 1] != _BACKSLASH:
        return 0
    return end - begin - len(text[begin:end].rstrip(b"\\"))


class NextElement:
    """Looks for the end of a broken element by the writer's habit: the next element begins a line as this one did.

    Args:
        begin: the beginning of the text between the last comma and the broken element's end.
    """

    def __init__(self, begin: bytes) -> None:
        match = _LINE_BEGIN.match(begin)
        self.knows = match is not None
        indent, bracket = match.groups() if match else (b"", b"")
        less = b"[ \\t]{0,%d}" % (len(indent) - 1) if indent else b""
        next_line = rb",(?=[ \t\r]{0,64}\n%b%b)" % (re.escape(indent), re.escape(bracket))
        last_line = rb"(?<=\n)%b\]" % less
        self._pattern = re.compile(next_line + b"|" + last_line)
        self.overlap = len(indent) + 80
        """Bytes at the end of a text without a match that may be the beginning of one."""

    def find(self, text: bytes, start: int = 0) -> int:
        """Offset of the comma, or of the bracket that closes the array; -1 for none."""
        match = self._pattern.search(text, start) if self.knows else None
        return match.end() - 1 if match else -1
