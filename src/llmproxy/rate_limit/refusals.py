"""What a caller is told of its limits: when it is let in, and when it is not."""

from collections.abc import Sequence
from math import ceil, inf

from llmproxy.errors import QuotaSpent, RateLimited
from llmproxy.headers import of_lines
from llmproxy.rate_limit.openai_headers import DO_NOT_RETRY, filled_in, retry_headers
from llmproxy.rate_limit.plans import Line, Plan
from llmproxy.rate_limit.reservation import Wanted
from llmproxy.store.interface import Reading
from llmproxy.types import Header

SOON = 1.0  # seconds; when somebody else will be done, nobody knows


def standing(plan: Plan, readings: Sequence[Reading]) -> bytes:
    """Return the lines that show the strictest limit of each unit: the one with least left."""
    told = []
    for places in plan.shown:
        place = min(places, key=lambda place: readings[place].left)
        left, resets_in, _ = readings[place]
        told.append(filled_in(plan.lines[place].form, left, resets_in))
    return b"".join(told)


def refusal(
    plan: Plan, wanted: Wanted, readings: Sequence[Reading], refused: Sequence[int]
) -> tuple[str, RateLimited | QuotaSpent]:
    """Return which limit is in the way for longest, and the error that says so."""
    budgets = [place for place in refused if plan.lines[place].kind != "limit"]
    if budgets:
        place = max(budgets, key=lambda place: readings[place].resets_in)
        line, reading = plan.lines[place], readings[place]
        return line.text, _quota_spent(line, reading, of_lines(standing(plan, readings)))
    place = max(refused, key=lambda place: _wait(plan.lines[place], readings[place]))
    line, reading = plan.lines[place], readings[place]
    return line.text, _limited(line, wanted[place][1], reading, of_lines(standing(plan, readings)))


def cut_short(text: str) -> QuotaSpent:
    """Return the error that ends a running stream."""
    return QuotaSpent(
        f"The budget of {text} was spent while this answer was written.", headers=[DO_NOT_RETRY]
    )


def _quota_spent(line: Line, reading: Reading, shown: list[Header]) -> QuotaSpent:
    if reading.left > 0:
        detail = f"The budget of {line.text} has less left than this request may take."
    else:
        detail = f"The budget of {line.text} is spent."
    # Trying again at once, as client libraries do, only multiplies the requests.
    headers = [*retry_headers(reading.resets_in), DO_NOT_RETRY, *shown]
    return QuotaSpent(detail, headers=headers)


def _limited(line: Line, amount: float, reading: Reading, shown: list[Header]) -> RateLimited:
    wait = _wait(line, reading)
    if wait == inf:
        detail = (
            f"This request may take {amount:.0f} tokens, more than the limit of {line.text} ever"
            " lets through. Ask for less, for instance with a smaller `max_tokens`."
        )
        return RateLimited(detail, headers=[*retry_headers(wait), DO_NOT_RETRY, *shown])
    if line.unit == "concurrent":
        detail = f"The limit of {line.text} is reached: wait for another request to end."
    else:
        detail = f"The limit of {line.text} is reached. Try again in {duration(wait)}."
    return RateLimited(detail, headers=[*retry_headers(wait), *shown])


def duration(seconds: float) -> str:
    """Return a time to wait as people say it; whoever waits for that long has waited enough."""
    size, unit = next((size, unit) for size, unit, most in _UNITS if seconds < most)
    amount = seconds / size
    # Two digits, rounded up; 1e-9 makes up for what a float cannot write.
    steps = 100 if amount < 1 else 10 if amount < 10 else 1
    return f"{max(ceil(amount * steps - 1e-9), 1) / steps:.10g} {unit}"


_UNITS = ((1, "s", 100.0), (60, "min", 6000.0), (3600, "h", 72 * 3600.0), (86_400, "days", inf))


def _wait(line: Line, reading: Reading) -> float:
    return SOON if line.unit == "concurrent" else reading.retry_in
