"""Which connection a call gets, and what becomes of it afterwards.

Invariant: `_taken` counts the connections that exist or are being made. A place is given up
in exactly one of two ways: it goes to the call that waits longest, or the count goes down.
"""

import asyncio
from collections import OrderedDict

from llmproxy.errors import Overloaded
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.limits import PoolLimits

RETRY_AFTER = 1  # seconds; a connection is free again as soon as any answer ends

# What a waiting call is given: a connection, or (None) the place to make one of its own.
Grant = Connection | None


class Pool:
    """The connections to one upstream."""

    def __init__(self, limits: PoolLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._limits = limits
        self._loop = loop
        self._taken = 0
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # the one that was used last stands last
        self._waiting: OrderedDict[asyncio.Future[Grant], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool {self._taken} taken, {len(self._idle)} idle, {len(self._waiting)} waiting>"

    def statistics(self) -> dict[str, int]:
        return {"open": self._taken, "idle": len(self._idle), "waiting": len(self._waiting)}

    # Taking

    def take_idle(self) -> Connection | None:
        """Return a connection that is open and young enough, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if self._usable(connection, self._loop.time()):
                return connection
            connection.abandon()
        return None

    async def place(self) -> Grant:
        """Return a connection, or None for a place to make one in; waits for either."""
        limit = self._limits.connections
        if limit == 0 or self._taken < limit:
            self._taken += 1
            return None
        if len(self._waiting) >= self._limits.queue:
            raise Overloaded(
                "Every connection to the model server is busy.", retry_after=RETRY_AFTER
            )
        grant: asyncio.Future[Grant] = self._loop.create_future()
        self._waiting[grant] = None
        try:
            async with asyncio.timeout(self._limits.queue_timeout):
                return await grant
        except BaseException as exc:
            if grant.done() and not grant.cancelled() and grant.exception() is None:
                # Given in the same moment in which we stopped waiting: it goes to the next.
                self._pass_on(grant.result())
            if isinstance(exc, TimeoutError):
                raise Overloaded(
                    "No connection to the model server became free in time.",
                    retry_after=RETRY_AFTER,
                ) from None
            raise
        finally:
            self._waiting.pop(grant, None)

    def make_room(self) -> None:
        """Close the connection that has been idle longest: its place is wanted."""
        if self._idle and 0 < self._limits.connections <= self._taken:
            self._idle.pop(0).abandon()

    def take_place_of(self, connection: Connection) -> None:
        """Close a connection and keep its place for a new one."""
        self._all.discard(connection)
        connection.abandon()

    # Giving back

    def made(self, connection: Connection) -> None:
        """Note that a connection was made in a place that was taken."""
        self._all.add(connection)
        if self._closed:
            connection.abandon()

    def not_made(self) -> None:
        """Give up a place in which no connection came about."""
        self._free_place()

    def returned(self, connection: Connection) -> None:
        """The connection can carry another call."""
        now = self._loop.time()
        connection.idle_since = now
        if self._closed or not self._usable(connection, now):
            connection.abandon()
        else:
            self._pass_on(connection)

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        if connection in self._all:
            self._all.remove(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._free_place()

    def close(self) -> None:
        """Close every connection and turn away whoever waits."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in list(self._all):
            connection.shut()
        for grant in self._waiting:
            if not grant.done():
                grant.set_exception(Overloaded("The proxy is stopping.", retry_after=RETRY_AFTER))

    def _usable(self, connection: Connection, now: float) -> bool:
        return (
            not connection.closed
            and now - connection.idle_since < self._limits.keepalive
            and now - connection.opened_at < self._limits.max_age
        )

    def _pass_on(self, grant: Grant) -> None:
        while self._waiting:
            waiting, _ = self._waiting.popitem(last=False)
            if not waiting.done():
                waiting.set_result(grant)
                return
        if grant is None:
            self._taken -= 1
            return
        self._idle.append(grant)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._limits.keepalive, self._sweep)

    def _free_place(self) -> None:
        self._pass_on(None)

    def _sweep(self) -> None:
        """Let go of what has been idle too long, whether or not anybody calls."""
        self._sweeper = None
        now = self._loop.time()
        kept = [each for each in self._idle if self._usable(each, now)]
        gone = [each for each in self._idle if not self._usable(each, now)]
        self._idle = kept
        for connection in gone:
            connection.abandon()
        if kept:
            due = min(each.idle_since for each in kept) + self._limits.keepalive
            self._sweeper = self._loop.call_at(due, self._sweep)
