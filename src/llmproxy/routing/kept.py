"""What a caller has been given of a stream, so that another server can go on with it.

Rule 1: what is kept are the very bytes objects that pass; nothing is copied or parsed while
        the stream is well.
Rule 2: an event is given out whole. Its first half is held back until the other half is there:
        no parser could use it, and half an event that nobody finishes cannot be taken back.
Rule 3: an event in which the server says that it has failed is not given out: what was begun
        may yet be finished elsewhere.
Rule 4: bounded per stream and in all. What is over a bound is passed on and can no longer be
        rescued, and that is all.
"""

import re
from dataclasses import dataclass
from typing import Any

from llmproxy import codec

MOST = 256 * 1024  # bytes of one stream: hours of talk
MOST_IN_ALL = 64 * 1024 * 1024
STEP = 16 * 1024  # bytes that a stream takes of them at a time
MOST_HELD = 4096  # bytes of half an event

PLAIN = b"]}\n\n"
"""The end of most events: one in which a server says that it has failed never ends like this."""

BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_WORD = b'"error"'
# OpenAI's form, and the one of vLLM before 2025.
_ERROR = re.compile(
    rb"(?:\A|\n\n|\r\n\r\n|\r\r)(?:event: ?error[\r\n]+)?"
    rb'data: ?(\{\s*(?:"error"|"object"\s*:\s*"error")[^\r\n]*)'
)


@dataclass(slots=True)
class Room:
    """The bytes that all streams of a process may keep together."""

    most: int = MOST_IN_ALL
    used: int = 0


class KeptStream:
    """One stream as its caller knows it.

    `through` takes any chunk. Nearly all of them are PLAIN and no longer than what is `left`,
    which is nothing while half an event is held: who has these may put them among the `parts`
    itself.
    """

    __slots__ = ("_room", "_taken", "failed", "held", "left", "parts", "whole")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0  # bytes of the room
        self.left = 0  # of what was taken, to be used without asking
        self.parts: list[bytes] = []
        self.held = b""  # half an event
        self.whole = True  # everything the caller has is kept, to the end of an event
        self.failed = b""  # the event in which the server said so

    def through(self, chunk: bytes) -> bytes:
        """Take a chunk; return what may be passed on now."""
        if self.held or not (
            chunk.endswith(PLAIN) or (chunk.endswith(b"\n\n") and chunk.find(_WORD) < 0)
        ):
            return self._cut(chunk)
        self._keep(chunk)
        return chunk

    @property
    def holds_back(self) -> bool:
        """Whether less was passed on than came in."""
        return bool(self.held or self.failed)

    def rest(self) -> bytes:
        """Return what is still held back; to be passed on when the stream ends by itself."""
        held, self.held = self.held, b""
        return held

    def begin_again(self) -> None:
        """Forget what nobody will finish: half an event, and the failure."""
        self.held = self.failed = b""

    def delivered(self) -> bytes:
        """Return everything that was passed on."""
        if len(self.parts) > 1:
            self.parts = [b"".join(self.parts)]
        return self.parts[0] if self.parts else b""

    def close(self) -> None:
        """Give the room back."""
        self._room.used -= self._taken
        self._taken = self.left = 0
        self.parts = []

    def _cut(self, chunk: bytes) -> bytes:
        """Take a chunk that may not be passed on as it is."""
        data = self.held + chunk if self.held else chunk
        self.held = b""
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in BLANK_LINES)
        if (failure := _failure_in(data, end)) is not None:
            begins, ends = failure
            self.failed = data[begins:ends] + b"\n\n"
            data, end = data[:begins], begins
        held = data[end:]
        if len(held) > MOST_HELD:
            self._give_up()
            return data
        passed = data[:end] if held else data
        if passed:
            self._keep(passed)
        if held:
            self._hold(held)
        return passed

    def _keep(self, passed: bytes) -> None:
        if not self.whole:
            return
        size = len(passed)
        if size > self.left and not self._take(size - self.left):
            self._give_up()
            return
        self.left -= size
        self.parts.append(passed)

    def _hold(self, half: bytes) -> None:
        """Hold back half an event: whatever comes next is to be seen."""
        self.held = half
        self._room.used -= self.left
        self._taken -= self.left
        self.left = 0

    def _take(self, needed: int) -> bool:
        """Take some of the room; tell whether there was enough."""
        room = self._room
        most = min(MOST - self._taken, room.most - room.used)
        if needed > most:
            return False
        taken = max(needed, min(STEP, most))
        self._taken += taken
        self.left += taken
        room.used += taken
        return True

    def _give_up(self) -> None:
        self.whole = False
        self.close()


def _failure_in(data: bytes, end: int) -> tuple[int, int] | None:
    """Return where an event stands in which the server says that it has failed."""
    if _WORD not in data:
        return None
    for match in _ERROR.finditer(data, 0, end):
        try:
            event = codec.loads(match[1])
        except codec.NotJson:
            continue
        if isinstance(event, dict) and says_failure(event):
            begins = match.start()
            while data[begins : begins + 1] in (b"\r", b"\n"):
                begins += 1
            return begins, match.end()
    return None


def says_failure(event: dict[str, Any]) -> bool:
    """Tell whether a server says in an event that it has failed. An `error` may be null."""
    return isinstance(event.get("error"), dict | str) or event.get("object") == "error"
