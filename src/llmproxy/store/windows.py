"""Calendar windows in UTC: when the one that a moment lies in began, and when it ends.

A window is known by its first second, so that two of them can be compared: a later one always
has the greater number, and the one that never ends has 0.
"""

import time
from calendar import timegm
from math import inf

from llmproxy.records import Window

HOUR = 3600.0
DAY = 86400.0


def window_at(window: Window, moment: float) -> tuple[float, float]:
    """Return the first second of the window and the first one after it, since 1970."""
    if window == "total":
        return 0.0, inf
    if window == "hour":
        begins = moment // HOUR * HOUR
        return begins, begins + HOUR
    if window == "day":
        begins = moment // DAY * DAY
        return begins, begins + DAY
    now = time.gmtime(moment)
    return _first(now.tm_year, now.tm_mon), _first(now.tm_year, now.tm_mon + 1)


def _first(year: int, month: int) -> float:
    return float(timegm((year + (month - 1) // 12, (month - 1) % 12 + 1, 1, 0, 0, 0)))


class Calendar:
    """Windows of the present: looked up once and not again before they are over."""

    def __init__(self) -> None:
        self._known: dict[Window, tuple[float, float]] = {}

    def at(self, window: Window, moment: float) -> tuple[float, float]:
        """Return what `window_at` does."""
        known = self._known.get(window)
        if known is None or not known[0] <= moment < known[1]:
            known = self._known[window] = window_at(window, moment)
        return known
