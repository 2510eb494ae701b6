"""What a connection remembers of its last head.

A client repeats its head to the byte, but for the length of the body. Such a head needs neither
the parser nor a check: both have passed on the same bytes before.

Rule 1: nothing is remembered beyond the connection, for a head holds credentials.
Rule 2: what differs in anything but the digits of one Content-Length is read like any other head.
"""

import re
from typing import Any

from llmproxy.server.head_rules import Head
from llmproxy.types import Header

LONGEST = 4096  # bytes of a head that is remembered; each connection pays for its own
DIGITS = 18

Recalled = tuple[Head, int]
"""A head that was known, and where it ends."""

_new = tuple.__new__  # 0.1 us faster than a call of the class
_LENGTH_LINE = re.compile(rb"\r\ncontent-length: ([0-9]{1,18})\r\n", re.IGNORECASE)


class HeadMemory:
    """One head: the bytes around its length, and what was found of it."""

    __slots__ = ("_after", "_before", "_found", "_place", "headers", "method", "notes")

    def __init__(self) -> None:
        self._before = b""
        self._after = b""
        self.method = b""
        self._found: Head | None = None
        self.headers: list[Header] = []
        self._place = 0  # of the length among them
        self.notes: dict[Any, Any] = {}
        """What others have noted about a head with these very headers."""

    def learn(self, raw: bytes, method: bytes, head: Head, longest: int) -> None:
        """Remember a head that was accepted; `raw` begins with it."""
        self._found = None
        end = raw.find(b"\r\n\r\n") + 4
        if end + DIGITS > min(longest, LONGEST) or head.old or head.expects_continue:
            return
        line = _LENGTH_LINE.search(raw, 0, end)
        names = [name for name, _ in head.headers]
        # An upgrade is not followed, but the parser stops at it: what comes behind is not a body
        # to it.
        if line is None or names.count(b"content-length") != 1 or b"upgrade" in names:
            return
        self._before = raw[: line.start(1)]
        self._after = raw[line.end(1) : end]
        self.method = method
        self.headers = list(head.headers)
        self._place = names.index(b"content-length")
        self.notes = {}
        self._found = head

    def recall(self, data: bytes) -> Recalled | None:
        """Return what is known of the head that `data` begins with; None of a new one."""
        found = self._found
        if found is None or not data.startswith(self._before):
            return None
        start = len(self._before)
        end = data.find(b"\r", start, start + DIGITS + 1)
        length = data[start:end]
        if end < 0 or not length.isdigit() or not data.startswith(self._after, end):
            return None
        self.headers[self._place] = (b"content-length", length)
        headers = self.headers.copy()  # a layer may change the list that it is given
        path, query, _, _, keep_alive, expects_continue, old = found
        head = _new(Head, (path, query, headers, int(length), keep_alive, expects_continue, old))
        return head, end + len(self._after)
