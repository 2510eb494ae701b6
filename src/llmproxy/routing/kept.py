"""What a caller has been given of a stream, so that another server can go on with it.

Rule 1: what is kept are the very bytes objects that pass; nothing is copied or parsed while
        the stream is well.
Rule 2: an event is given out whole. Its first half is held back until the other half is there:
        no parser could use it, and half an event that nobody finishes cannot be taken back.
Rule 3: bounded per stream and in all. What is over a bound is passed on and can no longer be
        rescued, and that is all.
"""

from dataclasses import dataclass

MOST = 256 * 1024  # bytes of one stream: hours of talk
MOST_IN_ALL = 64 * 1024 * 1024
MOST_HELD = 4096  # bytes of half an event

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


@dataclass(slots=True)
class Room:
    """The bytes that all streams of a process keep together."""

    most: int = MOST_IN_ALL
    used: int = 0


class KeptStream:
    """One stream as its caller knows it."""

    __slots__ = ("_held", "_parts", "_room", "_size", "whole")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._parts: list[bytes] = []
        self._size = 0
        self._held = b""
        self.whole = True  # everything the caller has is kept, to the end of an event

    def through(self, chunk: bytes) -> bytes:
        """Take a chunk; return what may be passed on now."""
        if not self._held and chunk.endswith(b"\n\n"):
            self._keep(chunk)
            return chunk
        return self._cut(chunk)

    def rest(self) -> bytes:
        """Return what is still held back; to be passed on when the stream ends by itself."""
        held, self._held = self._held, b""
        return held

    def drop_held(self) -> None:
        """Forget half an event that nobody will finish."""
        self._held = b""

    def delivered(self) -> bytes:
        """Return everything that was passed on."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def close(self) -> None:
        """Give the room back."""
        self._room.used -= self._size
        self._size = 0
        self._parts = []

    def _cut(self, chunk: bytes) -> bytes:
        data = self._held + chunk if self._held else chunk
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        held = data[end:]
        if len(held) > MOST_HELD:
            self._held = b""
            self._give_up()
            return data
        self._held = held
        passed = data[:end] if held else data
        if passed:
            self._keep(passed)
        return passed

    def _keep(self, passed: bytes) -> None:
        if not self.whole:
            return
        size = len(passed)
        room = self._room
        if self._size + size > MOST or room.used + size > room.most:
            self._give_up()
            return
        self._parts.append(passed)
        self._size += size
        room.used += size

    def _give_up(self) -> None:
        self.whole = False
        self.close()
