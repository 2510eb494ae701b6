"""What a connection remembers of the last head that it has read.

An engine repeats the head of its answers to the byte, but for the length of the body and the
date. Such a head needs neither the parser nor a look at its framing: the same bytes have been
through both before.

Rule 1: only the head of a counted body, behind which the connection stays open, is remembered.
Rule 2: what differs in anything but the digits of its one Content-Length and in its Date is
        read like any other head.
"""

import re
from typing import NamedTuple

from llmproxy.types import Header

LONGEST = 4096  # bytes of a head that is remembered; each connection pays for its own
DIGITS = 18
MOST_IN_VAIN = 8  # heads that are remembered one after the other and never come again

_LENGTH = b"content-length"
_VARYING = re.compile(rb"\r\n(content-length|date): ([^\r\n]*)(?=\r\n)", re.IGNORECASE)
_DATE = re.compile(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")
_LONGEST_VALUE = 29  # bytes: of the two, a date is longer

Known = tuple[int, list[Header], int, int]
"""A head that was here before: status, headers, length of the body, where the head ends."""


class Varying(NamedTuple):
    """A value that may be another one each time, and the bytes before it."""

    before: bytes
    name: bytes
    place: int  # among the headers
    counts: bool  # it is the length


class AnswerMemory:
    """One head: the bytes around what varies in it, and what was found of it."""

    __slots__ = ("_after", "_headers", "_in_vain", "_status", "_varying")

    def __init__(self) -> None:
        self._varying: tuple[Varying, ...] = ()  # without any, nothing is remembered
        self._after = b""
        self._status = 0
        self._headers: tuple[Header, ...] = ()
        self._in_vain = 0

    def learn(self, raw: bytes, status: int, headers: list[Header]) -> None:
        """Remember a head that was accepted; `raw` begins with it, or with another before it."""
        self._varying = ()
        if self._in_vain >= MOST_IN_VAIN:
            return
        self._in_vain += 1
        end = raw.find(b"\r\n\r\n", 0, LONGEST) + 4
        # Also tells that no other line end is in it, and so that this is where it ends.
        lines = len(headers) + 2
        if raw.count(b"\r\n", 0, end) != lines or raw.count(b"\n", 0, end) != lines:
            return
        if not raw.startswith(b"HTTP/1.1 %d " % status):
            return
        names = [name for name, _ in headers]
        varying: list[Varying] = []
        position = 0
        for found in _VARYING.finditer(raw, 0, end):
            name = found[1].lower()
            if names.count(name) != 1:
                return
            before = raw[position : found.start(2)]
            varying.append(Varying(before, name, names.index(name), name == _LENGTH))
            position = found.end(2)
        if not any(each.counts for each in varying):
            return
        self._varying = tuple(varying)
        self._after = raw[position:end]
        self._status = status
        self._headers = tuple(headers)

    def recall(self, data: bytes) -> Known | None:
        """Return what is known of the head that `data` begins with; None of a new one."""
        if not self._varying:
            return None
        headers = list(self._headers)
        length = position = 0
        for before, name, place, counts in self._varying:
            if not data.startswith(before, position):
                return None
            position += len(before)
            end = data.find(b"\r", position, position + _LONGEST_VALUE + 1)
            if end < 0:
                return None
            value = data[position:end]
            if counts:
                if not value.isdigit() or len(value) > DIGITS:
                    return None
                length = int(value)
            elif not _DATE.fullmatch(value):
                return None
            headers[place] = (name, value)
            position = end
        if not data.startswith(self._after, position):
            return None
        self._in_vain = 0
        return self._status, headers, length, position + len(self._after)
