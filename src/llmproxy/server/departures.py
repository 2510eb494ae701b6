"""Clients that left: the servers of all of them are let go, then their requests are ended.

Rule 1: a few at a time. A thousand may leave in one turn of the loop, when a front or a batch job
        dies. To do everything in the next turn would keep everybody else waiting for a fifth of a
        second.
Rule 2: what a server works for in vain goes first. To end a request, down to its line in the log,
        takes several times as long as to close a connection.
"""

import asyncio
from collections import deque
from typing import Protocol

LET_GO = 64  # in one turn; some 2 ms for the kernel,
PER_TURN = 16  # and requests ended in one, which is as much for us


class Leaver(Protocol):
    """A request whose client is gone."""

    def let_go(self) -> None:
        """Close what still works for it."""

    def cancel(self) -> None:
        """End what still runs of it."""


class Departures:
    """Whoever is still to be seen off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._came: deque[Leaver] = deque()  # are still worked for
        self._waiting: deque[Leaver] = deque()

    def add(self, leaver: Leaver) -> None:
        """See somebody off, in the next turn if nobody else leaves."""
        if not self._came and not self._waiting:
            self._loop.call_soon(self._turn)
        self._came.append(leaver)

    def _turn(self) -> None:
        came, waiting = self._came, self._waiting
        for _ in range(min(LET_GO, len(came))):
            leaver = came.popleft()
            waiting.append(leaver)
            leaver.let_go()
        if not came:
            for _ in range(min(PER_TURN, len(waiting))):
                waiting.popleft().cancel()
        if came or waiting:
            self._loop.call_soon(self._turn)
