"""A body in pieces, put together where there is room for all of it.

A buffer that grows with each piece is copied again and again: 16 MiB took 25 ms, up to 10 of them
in one step, and most of that was the kernel's, for memory that it had to give anew.

Rule 1: what is said of the length of a body is believed once an eighth of it is there. Until then
        the pieces are kept; nobody gets memory for a mere promise.
Rule 2: behind the first MiB each piece waits for its turn, and the next is read only then.
"""

import io

from llmproxy.protocol.splice import Pieces
from llmproxy.turns import STEP, my_turn

CREDIT = 8  # times what came, of memory that is empty until it is used
CRUMB = 4096  # bytes; a piece that is smaller gets none of its own: that would take as much again


class Gathered:
    """What has come of a body."""

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._pieces: list[bytes] = []
        self._room: io.BytesIO | None = None
        self.size = 0

    async def add(self, piece: bytes) -> None:
        """Take the next piece."""
        self.size += len(piece)
        if self.size > STEP:
            await my_turn()
        if self._room is not None:
            self._room.write(piece)
            return
        if self._pieces and len(self._pieces[-1]) < CRUMB:
            piece = self._pieces.pop() + piece
        self._pieces.append(piece)
        if self._length is not None and self.size * CREDIT >= self._length > STEP:
            self._room = await self._moved(self._length)

    async def whole(self) -> bytes:
        """Return all of it, once nothing more will come."""
        if self._room is None:
            if self.size <= STEP:
                return b"".join(self._pieces)
            self._room = await self._moved(self.size)
        self._room.truncate()  # it may be shorter than it was said to be
        return self._room.getvalue()  # no copy, for nothing else holds it

    async def _moved(self, length: int) -> io.BytesIO:
        """Return room for so much, with the pieces in it; they are given back meanwhile."""
        room = io.BytesIO(bytes(length))
        pieces, self._pieces = self._pieces, []
        pieces.reverse()
        while pieces:
            await my_turn()
            end = room.tell() + STEP
            while pieces and room.tell() < end:
                room.write(pieces.pop())
        return room


async def joined(pieces: Pieces) -> bytes:
    """Put a large body together, a step in each turn of the loop."""
    made = io.BytesIO(bytes(sum(map(len, pieces))))  # or it would be copied as it grows
    for piece in pieces:
        for start in range(0, len(piece), STEP):
            await my_turn()
            made.write(piece[start : start + STEP])
    return made.getvalue()
