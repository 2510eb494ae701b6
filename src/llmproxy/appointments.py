"""How late an event loop is: appointments that it has with itself, and when it keeps them.

Rule: one that was missed counts too. A loop that stood still for a second was late for everything
that would have happened meanwhile, and not only for the first of it.
"""

PERIOD = 0.02  # seconds; a thousandth of all of them is seen within a minute
LONGEST = 10.0  # seconds; whoever was away for longer was stopped, and need not count it all


class Appointments:
    """One every few milliseconds, on a grid that no delay moves."""

    def __init__(self, now: float) -> None:
        self._due = now + PERIOD

    def until_next(self, now: float) -> float:
        """Return the seconds until the next one."""
        return max(0.0, self._due - now)

    def kept(self, now: float) -> list[float]:
        """Return how late it was for each that is over, the longest first."""
        late: list[float] = []
        self._due = max(self._due, now - LONGEST)
        while self._due <= now:
            late.append(now - self._due)
            self._due += PERIOD
        return late
