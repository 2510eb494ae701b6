"""Takes the chunk with the count, which the caller did not ask for, out of an event stream.

Rule 1: bytes are passed on or taken out, never changed, and taken out only as one whole event:
        an object with empty `choices`, a `usage` that is an object, and no error.
Rule 2: bytes are held back only while they could still be that event, and never more than a
        few of them.
Rule 3: a chunk of whole ordinary events is passed on as the very object.
"""

import re
from collections.abc import Callable

from llmproxy import codec

MOST_HELD = 4096  # bytes; the event has 300 to 600 in every engine we know

# Two ends of lines in a row. A CR may be half of a CRLF; whether it is shows in the next byte.
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_WHOLE = (b"\n\n", b"\r\n\r\n")  # what a chunk of whole events ends with
_USAGE = b'"usage"'
# What ends so, if it has one line, is not the event in question. Its last member is a list with
# an object in it, and beside a count stands an empty list; or it is a count not said yet.
_ENDS_OF_ANSWERS = (b"}]}\n\n", b'"usage":null}\n\n')
_LINES = re.compile(rb"\r\n|\n|\r")
# What the event in question does not have: its data is an object with empty `choices`.
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?([^ \r\n])")
_ORDINARY = re.compile(rb'"choices"\s*:\s*(?:[^\s\[]|\[\s*[^\s\]])|"error"\s*:')


class UsageChunk:
    """One event stream on its way to a caller who wants no count."""

    __slots__ = ("_edge", "_held", "_inside", "_swallow", "_take", "plain")

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self.plain = True  # none of the four below
        self._held = b""  # the beginning of an event that could be the one
        self._inside = False  # an event that is passed on was cut
        self._edge = b""  # with this end of line
        self._swallow = False  # of the event that was taken out, an LF may still follow

    def passed(self, chunk: bytes) -> bytes:
        """Return what of a chunk goes on now."""
        # Searched from behind, which is twice as fast.
        if self.plain and chunk.endswith(_WHOLE) and chunk.rfind(_USAGE) < 0:
            return chunk
        going = self._sorted(chunk)
        self.plain = not (self._held or self._inside or self._swallow)
        return going

    def rest(self) -> bytes:
        """Return what was held back, at the end of the stream."""
        held, self._held = self._held, b""
        if held and is_usage_chunk(held):
            self._take(held)
            return b""
        return held

    def _sorted(self, chunk: bytes) -> bytes:
        if self._swallow and chunk:
            self._swallow = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        data, start = chunk, 0
        if self._held:
            data, self._held = self._held + chunk, b""
        elif self._inside:
            end = _END.search(self._edge + chunk)
            if end is None:
                self._edge = _edge_of(self._edge + chunk)
                return chunk
            start, self._inside = end.end() - len(self._edge), False
        going: list[bytes] = []
        gone = 0  # up to where the data is passed on or taken out
        while (end := _END.search(data, start)) is not None:
            event = data[start : end.end()]
            if _USAGE in event and is_usage_chunk(event):
                # Ends of lines in front of it belong to what was before.
                own = event.lstrip(b"\r\n")
                going.append(data[gone : end.end() - len(own)])
                self._take(own)
                gone = end.end()
            start = end.end()
        begun = data[start:]
        if not begun:
            self._swallow = gone == start and data.endswith(b"\r")
        elif len(begun) <= MOST_HELD and _could_be(begun):
            self._held = begun
        else:
            self._inside, self._edge = True, _edge_of(begun)
            start = len(data)
        if data is chunk and gone == 0 and start == len(chunk):
            return chunk
        going.append(data[gone:start])
        return b"".join(going)


def end_of_answers(events: bytes) -> bytes:
    """Return how the last of these events ends, if the one in question cannot end so."""
    return next((end for end in _ENDS_OF_ANSWERS if events.endswith(end)), b"")


def is_usage_chunk(event: bytes) -> bool:
    """Tell whether an event carries the count and nothing else."""
    lines = _LINES.split(event)
    data = [line[5:] for line in lines if line.startswith(b"data:")]
    try:
        said = codec.loads(b"\n".join(data))
    except codec.NotJson:
        return False
    return (
        isinstance(said, dict)
        and said.get("choices") == []
        and isinstance(said.get("usage"), dict)
        and "error" not in said
    )


def _could_be(begun: bytes) -> bool:
    data = _DATA.search(begun)
    return (data is None or data[1] == b"{") and _ORDINARY.search(begun) is None


def _edge_of(data: bytes) -> bytes:
    """Return the end of line that the data ends with."""
    if data.endswith(b"\r\n"):
        return b"\r\n"
    return data[-1:] if data.endswith((b"\n", b"\r")) else b""
