"""What a caller may say about its own request in headers of ours.

What cannot be understood is refused: an option that is silently ignored looks as if it worked.
"""

import math
import re
from collections.abc import Mapping

from llmproxy.errors import InvalidRequest

TIMEOUT = b"x-llmproxy-timeout"
LONGEST_TIMEOUT = 86_400.0  # seconds; a day is longer than any answer
LOWEST, HIGHEST = -10, 10  # classes of priority

_NUMBER = re.compile(rb"-?[0-9]{1,2}")


def timeout_of(fields: Mapping[bytes, bytes]) -> float | None:
    """Return the seconds that the caller gives the whole request; None = it does not say."""
    value = fields.get(TIMEOUT)
    if value is None:
        return None
    try:
        result = float(value)
    except ValueError:
        result = -1.0
    if b"_" in value:  # Python's way to write a long number, and nobody else's
        result = -1.0
    if not 0 < result <= LONGEST_TIMEOUT:  # NaN fails this too
        raise InvalidRequest(
            "`x-llmproxy-timeout` must be a number of seconds above 0, 86400 at most.",
            param="x-llmproxy-timeout",
        )
    return result


def deadline_of(started_at: float, fields: Mapping[bytes, bytes], total: float) -> float:
    """Return when a request must be over: by our clock (0 = none), or sooner if its caller said."""
    most = total or math.inf
    if TIMEOUT in fields:  # else it is not asked for at all: this runs for every request
        most = min(most, timeout_of(fields) or math.inf)
    return started_at + most


def time_left(seconds: float) -> bytes:
    """Write the rest of a caller's time for the next server, which may be a proxy; rounded down."""
    return b"%d.%03d" % divmod(max(int(seconds * 1000), 1), 1000)


def is_callers_own(fields: Mapping[bytes, bytes], total: float) -> bool:
    """Tell whether it is the caller who has set when a request must be over, and not we."""
    own = timeout_of(fields)
    return own is not None and own <= (total or math.inf)


def priority_of(fields: Mapping[bytes, bytes]) -> int | None:
    """Return the class that the caller asks for, a higher one going first; None = it does not."""
    value = fields.get(b"x-llmproxy-priority")
    if value is None:
        return None
    asked = int(value) if _NUMBER.fullmatch(value) else HIGHEST + 1
    if not LOWEST <= asked <= HIGHEST:
        raise InvalidRequest(
            f"`x-llmproxy-priority` must be a whole number from {LOWEST} to {HIGHEST}.",
            param="x-llmproxy-priority",
        )
    return asked


def class_of(fields: Mapping[bytes, bytes], most: int) -> int:
    """Return the class of a request: the key's, or a lower one that the caller asks for."""
    asked = priority_of(fields)
    return asked if asked is not None and asked < most else most
