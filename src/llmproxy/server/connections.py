"""All connections of one server: their clocks, and which one must go when there are too many."""

import asyncio
from collections import OrderedDict
from typing import Protocol

from llmproxy.server.departures import Departures

TICK = 0.25  # seconds; how late a deadline may be noticed


class Clocked(Protocol):
    """A connection, as far as it is seen from here."""

    deadline: float

    def look(self, now: float) -> None:
        """Act on a deadline that has passed, or on a client that stands still."""

    def close_idle(self) -> None:
        """Close now: nothing is under way."""


class Connections:
    """One slow tick looks after every deadline: a timer for each would cost more than the
    requests it guards."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: set[Clocked] = set()
        self._idle: OrderedDict[Clocked, None] = OrderedDict()  # the longest idle first
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.departures = Departures(self._loop)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Clocked) -> bool:
        """Take a new connection, in the place of the longest idle one when there are too many.

        False when every other one is busy: then this one has to go.
        """
        if self._most and len(self._all) >= self._most:
            if not self._idle:
                return False
            oldest, _ = self._idle.popitem(last=False)
            oldest.close_idle()
        self._all.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)
        return True

    def idle(self, connection: Clocked) -> None:
        """Note that nothing is under way on a connection."""
        self._idle[connection] = None

    def busy(self, connection: Clocked) -> None:
        """Note that something is."""
        self._idle.pop(connection, None)

    def close_idle(self) -> None:
        """Close every connection on which nothing is under way."""
        while self._idle:
            self._idle.popitem(last=False)[0].close_idle()

    def remove(self, connection: Clocked) -> None:
        """Forget a connection that is gone."""
        self._all.discard(connection)
        self._idle.pop(connection, None)

    def _tick(self) -> None:
        # First of all: whatever goes wrong with one of them, the others keep their clocks.
        self._timer = self._loop.call_later(TICK, self._tick) if self._all else None
        now = self._loop.time()
        for connection in list(self._all):
            if now >= connection.deadline:
                connection.look(now)
