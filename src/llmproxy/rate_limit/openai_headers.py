"""What an answer tells of limits, in the form that OpenAI's clients read.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, times as Go writes a duration (`120ms`,
`8.64s`, `6m0s`), `retry-after` in whole seconds and `retry-after-ms` beside it. Times are rounded
up, so that whoever waits for exactly as long is let in; what remains is rounded down.
"""

from math import ceil

from llmproxy.types import Header

BUDGET_REACHED = b"x-llmproxy-budget: soft-limit-reached\r\n"  # a line of a head
DO_NOT_RETRY: Header = (b"x-should-retry", b"false")
LONGEST = 31 * 86_400  # seconds that a caller is told to wait at most: a month's budget

_NAMES = {"req": b"requests", "tok": b"tokens"}
_LINES = (
    b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
)
HAIR = 1e-6  # by which a float that was counted down may be short of its whole number
MILLISECONDS = [b"0s", *(b"%dms" % count for count in range(1, 1000))]


def form(unit: str, limit: float) -> bytes:
    """Return the lines of a head that tell of one limit, but for how it stands."""
    name = _NAMES[unit]
    return _LINES % (name, limit, name, name)


def filled_in(form: bytes, left: float, resets_in: float) -> bytes:
    """Return these lines with what can still be had, and in how many seconds all of it can."""
    return form % (left + HAIR if left > 0.0 else 0.0, duration(resets_in))


def duration(seconds: float) -> bytes:
    """Write a duration as Go does, to the millisecond."""
    if seconds <= 0:
        return b"0s"
    milliseconds = int(seconds * 1000 + 0.999999)
    if milliseconds < 1000:
        return MILLISECONDS[milliseconds]
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
