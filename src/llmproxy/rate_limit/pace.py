"""How long a wait will be, told from how fast slots became free while all were taken."""

MEMORY = 64  # slots that became free; what was before fades
STALE = 60.0  # seconds without a slot that became free while all were taken


class Pace:
    """The mean time between two slots that become free. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._gap = 0.0
        self._seen = 0
        self._last = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was seen yet that still counts."""
        return self._seen > 0

    def full(self, now: float) -> None:
        """Note that the last slot was taken: from here on it counts how long it takes."""
        if now - self._last > STALE:
            self._seen, self._gap = 0, 0.0  # other requests, and perhaps another engine
        self._last = now

    def freed(self, now: float) -> None:
        """Note that a slot became free while all were taken."""
        if self._seen < MEMORY:
            self._seen += 1
        self._gap += (now - self._last - self._gap) / self._seen
        self._last = now

    def wait(self, ahead: int, now: float) -> float:
        """Return the seconds until it is the turn of one who has so many before it.

        0 while nothing is known. A silence that is longer than usual counts as if it ended now.
        """
        if not self._seen:
            return 0.0
        silence = now - self._last
        gap = self._gap + max(0.0, silence - self._gap) / self._seen
        return ahead * gap + max(0.0, gap - silence)
