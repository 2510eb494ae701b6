"""All connections of one server, and which one must go when there are too many."""

import asyncio
from collections import OrderedDict
from typing import Protocol

from llmproxy.server.deadlines import Deadlines
from llmproxy.server.departures import Departures


class Closable(Protocol):
    """A connection, as far as it is seen from here."""

    def close_idle(self) -> None:
        """Close now: nothing is under way."""


class Connections:
    """Whoever is connected; the longest idle one makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: set[Closable] = set()
        self._idle: OrderedDict[Closable, None] = OrderedDict()  # the longest idle first
        loop = asyncio.get_running_loop()
        self.departures = Departures(loop)
        self.deadlines = Deadlines(loop)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Closable) -> bool:
        """Take a new connection, in the place of the longest idle one when there are too many.

        False when every other one is busy: then this one has to go.
        """
        if self._most and len(self._all) >= self._most:
            if not self._idle:
                return False
            oldest, _ = self._idle.popitem(last=False)
            oldest.close_idle()
        self._all.add(connection)
        return True

    def idle(self, connection: Closable) -> None:
        """Note that nothing is under way on a connection."""
        self._idle[connection] = None

    def busy(self, connection: Closable) -> None:
        """Note that something is."""
        self._idle.pop(connection, None)

    def close_idle(self) -> None:
        """Close every connection on which nothing is under way."""
        while self._idle:
            self._idle.popitem(last=False)[0].close_idle()

    def remove(self, connection: Closable) -> None:
        """Forget a connection that is gone."""
        self._all.discard(connection)
        self._idle.pop(connection, None)
