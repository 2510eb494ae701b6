"""Whether this process has more than it can do: a late event loop, or memory near its end.

First new work is refused, then idle connections are closed; what is at work goes on to the end.
With nothing at work nothing is refused: there is no end to wait for, and an interpreter that
does not give memory back would refuse for ever.
"""

from collections.abc import Callable
from typing import NamedTuple

LATE = 0.1  # seconds that the event loop may be late ...
FOR = 1.0  # ... and seconds that it may be so on end
SHED = 0.85  # the part of the memory limit above which new work is refused, ...
CLOSE = 0.95  # ... and above which idle connections are closed


class Memory(NamedTuple):
    """What a group of processes uses and may use, in bytes."""

    used: int
    limit: int


class Pressure:
    """What the event loop and the memory say now."""

    def __init__(self, relieve: Callable[[], None] | None = None) -> None:
        self.running = 0  # requests at work
        self.relieve = relieve
        """Closes idle connections; called with every look at a memory that is nearly full."""
        self._late_since: float | None = None
        self._late = False
        self._short = False

    @property
    def shedding(self) -> bool:
        """Whether new work is to be refused."""
        return (self._late or self._short) and self.running > 0

    def lag(self, seconds: float, now: float) -> None:
        """Take note of how late the event loop was for an appointment, `now` being monotonic."""
        if seconds <= LATE:
            self._late_since = None
            self._late = False
            return
        if self._late_since is None:
            self._late_since = now - seconds
        self._late = now - self._late_since >= FOR

    def memory(self, found: Memory | None) -> None:
        """Take note of the memory; None = there is no limit, or it cannot be read."""
        part = found.used / found.limit if found is not None and found.limit > 0 else 0.0
        self._short = part > SHED
        if part > CLOSE and self.relieve is not None:
            self.relieve()
