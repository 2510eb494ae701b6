"""Clients that left: their requests are cancelled a few at a time.

A thousand may leave in one turn of the loop, when a front or a batch job dies. Ending all of
their requests in the next turn would keep everybody else waiting for a fifth of a second.
"""

import asyncio
from collections import deque
from typing import Protocol

PER_TURN = 16  # some 3 ms of work


class Leaver(Protocol):
    """A request whose client is gone."""

    def cancel(self) -> None:
        """End what still runs of it."""


class Departures:
    """Whoever is still to be seen off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Leaver] = deque()

    def add(self, leaver: Leaver) -> None:
        """See somebody off, in the next turn if nobody else leaves."""
        self._waiting.append(leaver)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        waiting = self._waiting
        for _ in range(min(PER_TURN, len(waiting))):
            waiting.popleft().cancel()
        if waiting:
            self._loop.call_soon(self._turn)
