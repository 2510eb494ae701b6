"""Keeps what may tell the usage, of an answer that comes in pieces.

Rule 1: bytes are looked at, never changed, and never parsed while they flow: the head and the
        tail of an answer are kept, and in between events are counted without reading them.
Rule 2: what is kept is bounded, whatever the size of a piece, an event or an answer.
"""

HEAD = 4096  # bytes; Anthropic tells the prompt in the first event
TAIL = 8192  # bytes; the count stands in one of the last events, and at the end of an answer
MOST_CHUNKS = 48  # kept apart before they are looked at together
LARGE_CHUNK = 1024  # bytes; a larger one is not kept


LF, CR = b"\n\r"


class Trace:
    """What is left of the pieces of one answer."""

    __slots__ = ("_count", "_parts", "events", "head", "latest", "mark", "size", "tail", "usual")

    def __init__(self, mark: bytes) -> None:
        self.mark = mark  # what is counted: each event has one; nothing in what is no stream
        self.size = 0  # of what was noted
        self.head = b""
        self.tail = b"\n" if mark == b"\ndata:" else b""  # the first event is like the others
        self.usual = b""  # how an event ends that is counted only; empty = none is
        self.events = 0  # that were counted only,
        self.latest = b""  # and the last of them, for it is one of the last there are
        self._count = 0
        self._parts: list[bytes] = []

    def note(self, piece: bytes) -> None:
        """Take notice of a piece."""
        parts = self._parts
        parts.append(piece)
        if len(parts) >= MOST_CHUNKS or len(piece) > LARGE_CHUNK:
            self.fold()

    def counts(self, piece: bytes) -> bool:
        """Tell whether a piece is one usual event; that is counted, and needs no more notice."""
        event = piece.removesuffix(self.usual)
        if event is piece or LF in event or CR in event:
            return False
        self.events += 1
        self.latest = piece
        return True

    def recall(self) -> None:
        """Note the last event that was counted only: what is noted now comes after it."""
        if self.latest:
            self._parts.append(self.latest)
            self.latest = b""
            self.events -= 1

    @property
    def count(self) -> int:
        """How many events have passed."""
        self.fold()
        return self._count + self.events

    def fold(self) -> None:
        """Look at the pieces that were put aside, and keep of them what may matter."""
        self.recall()
        if not self._parts:
            return
        data = b"".join(self._parts)
        self._parts.clear()
        self.size += len(data)
        if len(self.head) < HEAD:
            self.head += data[: HEAD - len(self.head)]
        mark, tail = self.mark, self.tail
        if mark:
            reach = len(mark) - 1
            seam = tail[-reach:] + data[:reach] if reach else b""
            self._count += data.count(mark) + seam.count(mark)
        self.tail = data[-TAIL:] if len(data) >= TAIL else (tail + data)[-TAIL:]

    def whole(self) -> bytes | None:
        """Return all that was noted, if it was short."""
        missing = self.size - len(self.head)
        if missing > TAIL:
            return None
        return self.head + self.tail[-missing:] if missing else self.head
