"""Points in time and lengths of it, as people read and write them."""

import re
from datetime import UTC, datetime

DAY = 86_400
LONGEST = 365 * DAY  # seconds

_UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": DAY}
_LENGTH = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([a-z]*)")


def instant(seconds: float | None) -> str | None:
    """Return a point in time, given in seconds since 1970, as text in UTC."""
    if seconds is None:
        return None
    try:
        at = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"  # beyond the year 9999, which is as far as dates go
    text = at.isoformat(timespec="milliseconds" if at.microsecond >= 1000 else "seconds")
    return text.replace("+00:00", "Z")


def length(given: object) -> float:
    """Read a length of time: `1h`, `15m`, or a number of seconds."""
    match = None
    if isinstance(given, str):
        match = _LENGTH.fullmatch(given.strip().lower())
    elif isinstance(given, int | float) and not isinstance(given, bool) and given >= 0:
        match = _LENGTH.fullmatch(f"{min(given, LONGEST + 1):.3f}")
    if match is not None and match[2] in _UNITS:
        value = float(match[1]) * _UNITS[match[2]]
        if value <= LONGEST:
            return value
    raise ValueError("must be a time such as 90s, 15m, 1h or 7d, or seconds; a year at most")
