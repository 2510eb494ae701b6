"""The grammar of budgets: `10 usd/day, 1e6 tok/month per team, soft:5 usd/day, 500 usd`.

Without a time it is a budget in total. `soft:` only warns; `cut:` ends a running stream when
the budget is spent, where otherwise only the next request is refused. Windows are those of the
calendar, in UTC.
"""

import re
from typing import Literal

from llmproxy.rate_limit.limits import (
    AMOUNT,
    FOR,
    amount_text,
    entries,
    for_text,
    read_amount,
    read_for,
    refuse_twice,
)
from llmproxy.records import Budget, Window

_WINDOWS: dict[str, Window] = {
    "hour": "hour",
    "h": "hour",
    "day": "day",
    "d": "day",
    "month": "month",
    "total": "total",
}
_KINDS: dict[str, Literal["hard", "soft", "cut"]] = {"hard": "hard", "soft": "soft", "cut": "cut"}
_ENTRY = re.compile(
    r"(?:(?P<kind>[a-z]+)\s*:\s*)?"
    + AMOUNT
    + r"\s*(?P<unit>usd|tok)(?:\s*/\s*(?P<window>[a-z]+))?"
    + FOR,
    re.IGNORECASE,
)

HOW_BUDGETS_LOOK = (
    "must look like `10 usd/day`, `1e6 tok/month`, `500 usd` (in total), `soft:5 usd/day` or"
    " `cut:10 usd/day`, with `per key`, `per team`, `per tier`, `per model` or `per ip` behind it"
    " (or `per team=blue`); times are hour, day and month"
)


def budgets(given: object) -> tuple[Budget, ...]:
    """Read budgets; raise `ValueError` saying what is allowed."""
    found = []
    for number, text in entries(given):
        match = _ENTRY.fullmatch(text)
        window = _WINDOWS.get((match["window"] or "total").lower()) if match else None
        kind = _KINDS.get((match["kind"] or "hard").lower()) if match else None
        if match is None or window is None or kind is None:
            raise ValueError(f"entry {number} {HOW_BUDGETS_LOOK}")
        money = match["unit"].lower() == "usd"
        amount = read_amount(match, number, whole=not money)
        per, of = read_for(match, number)
        found.append(Budget(amount, "usd" if money else "tok", window, per, of, kind))
    refuse_twice([(each.unit, each.window, each.per, each.of, each.kind) for each in found])
    return tuple(found)


def budget_text(budget: Budget) -> str:
    """Return a budget as it may be written, the same for every way to write it."""
    kind = "" if budget.kind == "hard" else f"{budget.kind}:"
    window = "" if budget.window == "total" else f"/{budget.window}"
    return f"{kind}{amount_text(budget.amount)} {budget.unit}{window}{for_text(budget)}"
