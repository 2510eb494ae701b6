"""Which meters a request meets: what is configured, put together once for each caller.

Rule 1: limits of a key take the place of those configured for every key; what is configured
        per team, tier, model or address holds for everybody.
Rule 2: a limit is never skipped for want of a name. A key without a team or a tier is counted
        by itself, and where nobody is asked who they are, the address stands for the key.
Rule 3: two subjects never share a meter, whatever their names are made of.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TypeVar

from llmproxy.rate_limit.budgets import budget_text
from llmproxy.rate_limit.bundle import Bundle, Told
from llmproxy.rate_limit.limits import address_subject, limit_text
from llmproxy.rate_limit.openai_headers import form
from llmproxy.records import Budget, Limit, Principal
from llmproxy.store.counters import Rate
from llmproxy.store.interface import Immediate, Kind, Meter, meter_name

T = TypeVar("T", Limit, Budget)

MOST_PLANS = 4096  # callers whose meters are kept ready; about 3 KiB each
LONGEST_SUBJECT = 120  # characters; longer ones are counted under their digest
_DIGEST = "sha256="
_BY_REQUEST = ("model", "ip")  # what the same caller may have more than one of


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One limit or budget of one subject."""

    meter: Meter
    local: Meter  # the share of it that one worker has while there is no store to ask
    unit: str  # req, tok, concurrent or usd
    kind: str  # limit; hard, soft or cut for a budget
    text: str  # as it is configured
    fixed: float  # what every request takes of it; 0 = that depends on its tokens
    form: bytes = b""  # what an answer tells of it, but for how it stands


class Plan:
    """All lines of one caller. What can be known before a request comes is worked out here."""

    __slots__ = (
        "bundle", "costs", "counts", "cut", "fixed", "hard", "let_in", "lines", "principal",
        "shown", "soft", "subject",
    )  # fmt: skip

    def __init__(
        self,
        lines: tuple[Line, ...],
        subject: str,
        principal: Principal | None = None,
        at_once: Immediate | None = None,
    ) -> None:
        self.lines = lines
        self.subject = subject  # what is learnt is kept under it
        self.principal = principal  # keeps its identity from being given to another
        self.counts = any(not line.fixed for line in lines)  # whether tokens matter
        self.costs = any(line.unit == "usd" for line in lines)
        self.hard = any(line.kind in ("hard", "cut") for line in lines)
        self.cut = any(line.kind == "cut" for line in lines)
        self.soft = tuple(place for place, line in enumerate(lines) if line.kind == "soft")
        # An answer tells of one limit of each unit.
        self.shown = tuple(filter(None, (_places(lines, unit) for unit in ("req", "tok"))))
        self.fixed = tuple((line.meter, line.fixed) for line in lines)
        # What this process has let in of each limit of requests.
        self.let_in = [Rate(0.0, 0.0, line.meter.each) for line in lines if line.unit == "req"]
        self.bundle: Bundle | None = None
        if at_once is not None and lines and all(line.kind == "limit" for line in lines):
            rates = [[lines[place] for place in places] for places in self.shown]
            self.bundle = Bundle(
                at_once,
                [[Told(each.meter, each.fixed, each.form) for each in unit] for unit in rates],
                [line.meter for line in lines if line.meter.kind is Kind.HELD],
            )

    def only_requests(self, at_once: Immediate | None) -> "Plan":
        """Return the part that a request without any model meets."""
        lines = tuple(line for line in self.lines if line.fixed)
        return Plan(lines, self.subject, self.principal, at_once)


class Plans:
    """Makes plans and keeps those of the callers of late."""

    def __init__(
        self,
        limits: tuple[Limit, ...],
        budgets: tuple[Budget, ...],
        *,
        workers: int,
        most: int = MOST_PLANS,
        at_once: Immediate | None = None,
    ) -> None:
        self._at_once = at_once
        self._limits = limits
        self._budgets = budgets
        self._workers = workers
        self._most = most
        per = {each.per for each in limits} | {each.per for each in budgets}
        self._by_address = "ip" in per
        self._by_model = "model" in per
        # By identity alone where neither address nor model makes a difference.
        self._ready: dict[object, tuple[Plan, Plan]] = {}
        self.known = self._ready.get
        """Returns the same as `find` for the `id` of a caller; None = `find` has to be asked."""

    def find(
        self, principal: Principal | None, address: str | None, model: str | None
    ) -> tuple[Plan, Plan]:
        """Return the plan of a caller, and the part of it for requests without a model."""
        # What makes no difference is no part of the name: callers may ask for any model. An
        # identity is looked up in a tenth of the time that a record takes to be hashed.
        name: object = id(principal)
        found = self._ready.get(name)
        if found is not None:
            return found
        own = principal is not None and bool(principal.limits or principal.budgets)
        by_address = principal is None or own or self._by_address
        by_model = own or self._by_model
        if by_address or by_model:
            name = name, address if by_address else None, model if by_model else None
            found = self._ready.get(name)
            if found is not None:
                return found
        whole = self._made(principal, address, model)
        found = whole, whole.only_requests(self._at_once)
        if len(self._ready) >= self._most:
            del self._ready[next(iter(self._ready))]
        if model is None or len(model) <= LONGEST_SUBJECT:
            self._ready[name] = found
        return found

    def everywhere(self, principal: Principal) -> tuple[Line, ...]:
        """Return what every request of a caller meets, whatever its model and from wherever."""
        return self._made(principal, None, None, everywhere=True).lines

    def _made(
        self,
        principal: Principal | None,
        address: str | None,
        model: str | None,
        *,
        everywhere: bool = False,
    ) -> Plan:
        who = _subject(principal, address)
        lines: dict[str, Line] = {}
        own = principal.limits if principal is not None else ()
        for limit, of_key in _in_force(own, self._limits):
            if everywhere and limit.per in _BY_REQUEST:
                continue
            subject = _subject_of(limit, principal, address, model, of_key=of_key)
            if subject is not None:
                line = self._limit_line(limit, subject)
                lines.setdefault(line.meter.name, line)
        own_budgets = principal.budgets if principal is not None else ()
        for budget, of_key in _in_force(own_budgets, self._budgets):
            if everywhere and budget.per in _BY_REQUEST:
                continue
            subject = _subject_of(budget, principal, address, model, of_key=of_key)
            if subject is not None:
                line = self._budget_line(budget, subject)
                lines.setdefault(line.meter.name, line)
        return Plan(tuple(lines.values()), meter_name(*who), principal, self._at_once)

    def _limit_line(self, limit: Limit, subject: tuple[str, ...]) -> Line:
        # The amount is no part of the name: whoever changes it does not begin anew.
        held, tokens = limit.unit == "concurrent", limit.unit == "tok"
        name = meter_name("limit", limit.unit, f"{limit.period:g}", *subject)
        kind = Kind.HELD if held else Kind.RATE
        # How many tokens a request takes is a guess when it is let in; that it is one is none.
        meter = Meter(name, kind, limit.amount, limit.period, provisional=tokens)
        return Line(
            meter=meter,
            local=share(meter, self._workers),
            unit=limit.unit,
            kind="limit",
            text=limit_text(limit),
            fixed=0.0 if tokens else 1.0,
            form=form(limit.unit, limit.amount) if not held else b"",
        )

    def _budget_line(self, budget: Budget, subject: tuple[str, ...]) -> Line:
        # By kind apart: a soft and a hard budget of one key both count the same tokens.
        name = meter_name("budget", budget.kind, budget.unit, budget.window, *subject)
        hard = budget.kind != "soft"
        meter = Meter(name, Kind.SPENT, budget.amount, window=budget.window, hard=hard)
        return Line(
            meter=meter,
            local=share(meter, self._workers),
            unit=budget.unit,
            kind=budget.kind,
            text=budget_text(budget),
            fixed=0.0,
        )


def share(meter: Meter, workers: int) -> Meter:
    """Return what one of several workers may let through without asking the others.

    The pace is a fair share of the whole, but never less than one at a time.
    """
    if workers <= 1:
        return meter
    if meter.kind is Kind.SPENT:
        return replace(meter, limit=meter.limit / workers)
    if meter.kind is Kind.HELD:
        return replace(meter, limit=max(1.0, float(meter.limit // workers)))
    limit = max(1.0, meter.limit / workers)
    return replace(meter, limit=limit, period=meter.period * limit * workers / meter.limit)


def _in_force(own: tuple[T, ...], everybody: tuple[T, ...]) -> Iterable[tuple[T, bool]]:
    yield from ((each, True) for each in own)
    yield from ((each, False) for each in everybody if not (own and each.per == "key"))


def _subject(principal: Principal | None, address: str | None) -> tuple[str, ...]:
    if principal is not None:
        return "key", _short(principal.id)
    return "ip", _address(address)


def _subject_of(
    given: Limit | Budget,
    principal: Principal | None,
    address: str | None,
    model: str | None,
    *,
    of_key: bool,
) -> tuple[str, ...] | None:
    """Return under what something is counted; None when it is not for this request."""
    who = _subject(principal, address)
    if given.per == "key":
        return who
    if given.per == "team" or given.per == "tier":
        value = getattr(principal, given.per, None)
        if given.of is not None:
            return (given.per, "=", _short(given.of)) if value == given.of else None
        return (given.per, "", _short(value)) if value is not None else (given.per, "-", *who)
    value = (model or "") if given.per == "model" else _address(address)
    if given.of is not None and value != given.of:
        return None
    mark = "" if given.of is None else "="
    # Of a key's own limits, those per model or address are that key's, not everybody's.
    return (given.per, mark, _short(value), *(who if of_key else ()))


def _address(address: str | None) -> str:
    try:
        return address_subject(address or "")
    except ValueError:
        return _short(address or "")  # a unix socket, or a server that tells nothing


def _short(text: str) -> str:
    if len(text) <= LONGEST_SUBJECT and not text.startswith(_DIGEST):
        return text
    return _DIGEST + sha256(text.encode(errors="surrogatepass")).hexdigest()


def _places(lines: tuple[Line, ...], unit: str) -> tuple[int, ...]:
    return tuple(
        place for place, line in enumerate(lines) if line.unit == unit and line.kind == "limit"
    )
