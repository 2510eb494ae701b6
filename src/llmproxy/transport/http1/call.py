"""One answer as it comes in: what was received and not yet read, and who waits for it."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from llmproxy.transport.interface import Silence
from llmproxy.types import Header

if TYPE_CHECKING:
    from llmproxy.transport.http1.connection import Connection

# Above the first the socket is no longer read, below the second it is again. One read of the
# event loop brings up to 256 KiB, so this is about what a client that stands still can hold.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
TINY = 0.001  # seconds; the least that a clock can be set to, 0 being for ever


class Http1Call:
    """The answer to one request. Filled by its connection, emptied by `read`."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_connection",
        "_deadline",
        "_due",
        "_failure",
        "_loop",
        "_paused",
        "_timer",
        "_waiter",
        "complete",
        "headers",
        "reused",
        "status",
    )

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        # What the answer began with
        self.status = 0  # 0 until the final head is there
        self.headers: list[Header] = []
        self.reused = connection.calls > 0

        # What came in
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._failure: Exception | None = None
        self.complete = False

        # Whom it came from, and who waits for it
        self._connection: Connection | None = connection
        self._paused = False
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer goes off, which may be before the deadline

    # For the reader

    @property
    def over(self) -> bool:
        return self.complete and not self._chunks

    async def head(self, within: float) -> None:
        """Return once the final head is there; raise `Silence` when it does not come.

        The clock is not renewed by a part of it, nor by informational ones before it.
        """
        due = self._loop.time() + within
        while self.status == 0:
            if self._failure is not None:
                raise self._failure
            await self._something(max(due - self._loop.time(), TINY) if within else 0)

    async def read(self, within: float) -> bytes:
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._buffered -= len(chunk)
                if self._paused and self._buffered < LOW_WATER:
                    self._paused = False
                    if self._connection is not None:
                        self._connection.resume_reading()
                return chunk
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._something(within)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        self._stop_clock()

    # For the connection

    def take(self, chunk: bytes) -> None:
        """Put in what one read brought."""
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered > HIGH_WATER and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()

    def end(self) -> None:
        """Note that the answer is complete; the connection is free for another call."""
        self.complete = True
        connection, self._connection = self._connection, None
        if self._paused and connection is not None:
            connection.resume_reading()
        self._stop_clock()

    def fail(self, failure: Exception) -> None:
        """Note why nothing more will come; what came before can still be read."""
        if self._failure is None and not self.complete:
            self._failure = failure
        self._connection = None
        self._stop_clock()
        self.wake()

    def wake(self) -> None:
        """Tell the reader to look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The clock. A timer that were set and cancelled for each chunk would cost more than
    # reading the chunk: it is left running, and when it goes off it looks whether the
    # deadline has moved on since.

    async def _something(self, within: float) -> None:
        self._waiter = waiter = self._loop.create_future()
        if within > 0:
            self._deadline = deadline = self._loop.time() + within
            if self._timer is None or self._due > deadline:
                self._set_clock(deadline)
        else:
            self._deadline = float("inf")
        try:
            await waiter
        finally:
            self._waiter = None

    def _set_clock(self, due: float) -> None:
        self._stop_clock()
        self._due = due
        self._timer = self._loop.call_at(due, self._ring)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done() or self._deadline == float("inf"):
            return
        if self._loop.time() < self._deadline:
            self._set_clock(self._deadline)
        else:
            waiter.set_exception(Silence())
