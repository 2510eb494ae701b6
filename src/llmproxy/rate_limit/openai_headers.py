"""What an answer tells of limits, in the form that OpenAI's clients read.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, times as Go writes a duration (`120ms`,
`8.64s`, `6m0s`), `retry-after` in whole seconds and `retry-after-ms` beside it. Times are rounded
up, so that whoever waits for exactly as long is let in; what remains is rounded down.
"""

from math import ceil

from llmproxy.types import Header

BUDGET_REACHED: Header = (b"x-llmproxy-budget", b"soft-limit-reached")
DO_NOT_RETRY: Header = (b"x-should-retry", b"false")
LONGEST = 31 * 86_400  # seconds that a caller is told to wait at most: a month's budget

_NAMES = {"req": b"requests", "tok": b"tokens"}


class Shown:
    """One limit in headers: what never changes of them is put together once."""

    __slots__ = ("_limit", "_remaining", "_reset")

    def __init__(self, unit: str, limit: float) -> None:
        name = _NAMES[unit]
        self._limit = b"x-ratelimit-limit-" + name, b"%d" % limit
        self._remaining = b"x-ratelimit-remaining-" + name
        self._reset = b"x-ratelimit-reset-" + name

    def headers(self, left: float, resets_in: float) -> tuple[Header, Header, Header]:
        """Return the limit, what remains of it, and when all of it can be had again."""
        # A float that was counted down may be a hair short of the whole number it stands for.
        remaining = b"%d" % (left + 1e-6) if left > 0 else b"0"
        return self._limit, (self._remaining, remaining), (self._reset, duration(resets_in))


def duration(seconds: float) -> bytes:
    """Write a duration as Go does, to the millisecond."""
    if seconds <= 0:
        return b"0s"
    milliseconds = int(seconds * 1000 + 0.999999)
    if milliseconds < 1000:
        return b"%dms" % (milliseconds or 1)
    whole, rest = divmod(milliseconds, 1000)
    fraction = (b".%03d" % rest).rstrip(b"0") if rest else b""
    if whole < 60:
        return b"%d%bs" % (whole, fraction)
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return b"%dm%d%bs" % (minutes, whole, fraction)
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%d%bs" % (hours, minutes, whole, fraction)


def retry_headers(seconds: float) -> tuple[Header, ...]:
    """Return when to ask again; where there is no such time, after the longest of all."""
    wait = min(max(seconds, 0.0), LONGEST)
    return (
        (b"retry-after", b"%d" % max(1, ceil(wait - 1e-9))),
        (b"retry-after-ms", b"%d" % max(1, ceil(wait * 1000 - 1e-6))),
    )
