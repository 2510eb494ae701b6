"""A clock for a deadline that somebody else has to keep."""

import asyncio
from collections.abc import Callable

STALLED = 0.005  # seconds; who looks at a clock later than this was busy itself
EXCUSE = 0.05  # seconds that it may take to read what has arrived meanwhile


class Watch:
    """Rings when a time is up.

    When our own loop had no time to look, that proves nothing: the answer may well be lying in
    the socket. It then gets some time to be read, once.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, due: float, ring: Callable[[], None]
    ) -> None:
        self.rang = False
        self._loop = loop
        self._due = due
        self._ring = ring
        self._excused = False
        self._handle = loop.call_at(due, self._look)

    def stop(self) -> None:
        """Do not ring any more."""
        self._handle.cancel()

    def _look(self) -> None:
        late = self._loop.time() - self._due
        if late > STALLED and not self._excused:
            self._excused = True
            self._handle = self._loop.call_later(min(late, EXCUSE), self._look)
            return
        self.rang = True
        self._ring()
