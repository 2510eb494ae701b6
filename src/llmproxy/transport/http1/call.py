"""One answer as it comes in: what was received and not yet read, and who waits for it."""

import asyncio
from typing import TYPE_CHECKING

from llmproxy.transport.interface import Silence, Taker
from llmproxy.types import Header

if TYPE_CHECKING:
    from llmproxy.transport.http1.connection import Connection

# Above the first the socket is no longer read, below the second it is again. What a client that
# stands still can hold is this, one read, and the piece that waits for the client already.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
FOR_EVER = float("inf")


class Http1Call:
    """The answer to one request. Filled by its connection, emptied by `read`."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_connection",
        "_deadline",
        "_failure",
        "_loop",
        "_patience",
        "_paused",
        "_sink",
        "_until",
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
        self._chunks: list[bytes] = []  # few, mostly none; an empty deque takes 700 bytes
        self._buffered = 0
        self._failure: Exception | None = None
        self.complete = False

        # Whom it came from, and who waits for it
        self._connection: Connection | None = connection
        self._paused = False
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Taker | None = None  # of the one who waits in `flow`
        self._patience = 0.0
        self._until = 0.0
        self._deadline = 0.0

    # For the reader

    @property
    def over(self) -> bool:
        return self.complete and not self._chunks

    async def head(self, within: float) -> None:
        """Return once the final head is there; raise `Silence` when it does not come.

        The clock is not renewed by a part of it, nor by informational ones before it.
        """
        due = self._loop.time() + within if within else FOR_EVER
        while self.status == 0:
            if self._failure is not None:
                raise self._failure
            await self._something(due)

    def at_once(self) -> bytes | None:
        # What is complete is paused no more, and holds no clock.
        if not self.complete or len(self._chunks) != 1:
            return None
        self._buffered = 0
        return self._chunks.pop()

    async def read(self, within: float) -> bytes:
        while True:
            if self._chunks:
                chunk = self._chunks.pop(0)
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
            await self._something(self._loop.time() + within if within else FOR_EVER)

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        if self._is_ready():
            return True
        self._waiter = waiter = self._loop.create_future()
        self._patience = within or FOR_EVER
        self._until = self._loop.time() + at_most
        self._sink = sink
        self._wait_on()
        self._set_clock()
        try:
            await waiter
        finally:
            self._waiter = self._sink = None
        return self._is_ready()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    # For the connection

    def take(self, chunk: bytes) -> None:
        """Put in what one read brought."""
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered > HIGH_WATER and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()

    def pass_on(self, chunk: bytes) -> bool:
        """Give what one read brought to the sink of the one who waits, if it has one.

        Not while the one who waits is about to go on: then there may be bytes before these,
        or nobody any more.
        """
        sink, waiter = self._sink, self._waiter
        if sink is None or waiter is None or waiter.done():
            return False
        try:
            wants_more = sink(chunk)
        except Exception as exc:
            # Nobody here could tell the client: it belongs to the task of its request.
            if not waiter.done():
                waiter.set_exception(exc)
        else:
            if wants_more:
                self._wait_on()
            else:
                self.wake()
        return True

    def end(self) -> None:
        """Note that the answer is complete; the connection is free for another call."""
        self.complete = True
        connection, self._connection = self._connection, None
        if self._paused and connection is not None:
            connection.resume_reading()

    def fail(self, failure: Exception) -> None:
        """Note why nothing more will come; what came before can still be read."""
        if self._failure is None and not self.complete:
            self._failure = failure
        self._connection = None
        self.wake()

    def wake(self) -> None:
        """Tell the reader to look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def ring(self) -> None:
        """Look whether the one who waits has waited long enough."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._set_clock()
        elif self._sink is not None and self._deadline == self._until:
            waiter.set_result(None)  # it has waited `at_most` as long as it would
        else:
            waiter.set_exception(Silence())

    def _something(self, due: float) -> "asyncio.Future[None]":
        """Return what is done as soon as there is a reason to look again, or it is time."""
        self._waiter = waiter = self._loop.create_future()
        self._deadline = due
        self._set_clock()
        return waiter

    def _is_ready(self) -> bool:
        return bool(self._chunks) or self.complete or self._failure is not None

    def _wait_on(self) -> None:
        """Begin the clock of `flow` anew."""
        self._deadline = min(self._loop.time() + self._patience, self._until)

    def _set_clock(self) -> None:
        if self._deadline < FOR_EVER and self._connection is not None:
            self._connection.ring_at(self._deadline)
