"""Let a request in or refuse it, and write down what it really took.

Rule 1: all limits and budgets of a request are asked in one step; a refused request costs
        nothing.
Rule 2: what was reserved is settled once, whatever becomes of the request.
Rule 3: while the store cannot be asked, each worker keeps its share of the limits by itself.
        Whoever has a hard budget is turned away meanwhile, unless it is configured otherwise.
"""

import logging
from collections.abc import Sequence
from itertools import compress
from typing import Literal, Protocol

from llmproxy import clock
from llmproxy.errors import StoreUnavailable
from llmproxy.rate_limit.arrears import Arrears
from llmproxy.rate_limit.depths import fill, take_out
from llmproxy.rate_limit.estimate import LONGEST_PROMPT, NOTHING, Estimator, Seen
from llmproxy.rate_limit.openai_headers import BUDGET_REACHED
from llmproxy.rate_limit.plans import Line, Plan, Plans
from llmproxy.rate_limit.pricing import Prices, Pricing
from llmproxy.rate_limit.refusals import cut_short, refusal, standing
from llmproxy.rate_limit.reservation import Reservation, Ticket, Wanted
from llmproxy.rate_limit.unsettled import Settled
from llmproxy.records import Budget, Endpoint, InferenceRequest, Limit, Principal, Usage
from llmproxy.store.interface import Grant, Immediate, Meters, Reading, Unavailable

STEP = 256  # tokens that a running stream reserves at a time, beyond its estimate
AWAY = 5  # seconds after which to ask again: within as many the store is found when it is back
MOST_WARNINGS = 1000  # soft budgets that have been warned of

ChargeCancelled = Literal["counted", "reported", "none"]

log = logging.getLogger("llmproxy")


class Counters(Protocol):
    """Who is told of what happens. A limit's name is its text in the configuration."""

    def limit_rejected(self, limit: str) -> None:
        """A request was refused because of this limit or budget."""

    def soft_budget_reached(self, budget: str) -> None:
        """A request was let in although this soft budget is spent."""

    def settlements_dropped(self, count: int) -> None:
        """So many amounts could not be kept until the store was back."""


class NobodyCounts:
    """Stands where nobody wants to know."""

    def limit_rejected(self, limit: str) -> None:
        """Forget it."""

    def soft_budget_reached(self, budget: str) -> None:
        """Forget it."""

    def settlements_dropped(self, count: int) -> None:
        """Forget it."""


class Limiter:
    """All limits and budgets of one app."""

    def __init__(
        self,
        store: Meters,
        local: Meters,
        *,
        limits: tuple[Limit, ...] = (),
        budgets: tuple[Budget, ...] = (),
        prices: Prices | None = None,
        workers: int = 1,
        store_down: Literal["closed", "soft"] = "closed",
        charge_cancelled: ChargeCancelled = "counted",
        at_once: Immediate | None = None,
        counters: Counters | None = None,
    ) -> None:
        """`local` serves while `store` is away; they may be one and the same.

        `at_once` is that store where it is this very process: then all of a request can be done
        without a coroutine.
        """
        self.charge_cancelled: ChargeCancelled = charge_cancelled
        self.at_once = at_once
        self._store = store
        self._local = local
        self._plans = Plans(limits, budgets, workers=workers, at_once=at_once)
        self._pricing = Pricing(prices)
        self._closed = store_down == "closed"
        self._counters: Counters = counters or NobodyCounts()
        self._ready = self._plans.ready
        self._estimator = Estimator()
        self._arrears = Arrears(store, self._counters, workers=workers)
        self._away = False
        self._warned: dict[str, float] = {}  # until when not again

    async def reserve(
        self,
        principal: Principal | None,
        address: str | None,
        endpoint: Endpoint,
        asked: InferenceRequest,
    ) -> Reservation:
        """Let a request in; raise `RateLimited`, `QuotaSpent` or `StoreUnavailable`."""
        plan = self._plans.find(principal, address, asked.model)[endpoint.name == "models"]
        reservation = self._asked_for(plan, endpoint, asked)
        if not plan.lines:
            return reservation
        wanted, asked_at = reservation.wanted(), clock.now()
        try:
            grant = await self._store.take(wanted)
        except Unavailable:
            wanted, grant = await self._take_here(reservation, wanted)
        else:
            if self._away:
                self._away = False
                log.info("the store answers again: limits are kept over all workers")
        self._let_in(reservation, wanted, grant, asked_at)
        return reservation

    def reserve_now(
        self,
        principal: Principal | None,
        address: str | None,
        endpoint: Endpoint,
        asked: InferenceRequest,
    ) -> Reservation | Ticket:
        """Do what `reserve` does, where the store answers at once."""
        found = self._ready.get(id(principal))
        if found is None:
            found = self._plans.find(principal, address, asked.model)
        plan = found[0] if endpoint.name != "models" else found[1]
        bundle = plan.bundle
        if bundle is not None:
            if plan.counts:
                estimate = self._estimator.estimate(plan.subject, endpoint, asked)
            else:
                estimate = NOTHING
            # Who asks for more than a limit, or meets one that is reached, goes the long way.
            taken = bundle.take(estimate.tokens)
            if taken is not None:
                head_lines, depths = taken
                return Ticket(bundle, plan, asked, estimate, head_lines, depths)
        assert self.at_once is not None
        reservation = self._asked_for(plan, endpoint, asked)
        if plan.lines:
            wanted, asked_at = reservation.wanted(), clock.now()
            self._let_in(reservation, wanted, self.at_once.take_now(wanted), asked_at)
        return reservation

    async def go_on(self, reservation: Reservation, counted: int, model: str | None = None) -> None:
        """Let a stream run on that has brought `counted` tokens; raise `QuotaSpent` to end it.

        Only for a reservation with `cut`, once `counted` is beyond what is `allowed`.
        """
        steps = max(1, -int((reservation.allowed - counted) // STEP))
        more = float(steps * STEP)
        reservation.allowed += more
        price = self._pricing.of_answer(reservation, model)
        cost = price.most(0, more) if price is not None else 0.0
        lines = [line for line in reservation.plan.lines if line.kind == "cut"]
        local = reservation.local
        wanted = [
            (line.local if local else line.meter, cost if line.unit == "usd" else more)
            for line in lines
        ]
        try:
            grant = await (self._local if local else self._store).take(wanted)
        except Unavailable:
            return  # it was let in when the store was there, and is settled in the end
        if not grant.granted:
            text = lines[grant.refused[0]].text
            self._counters.limit_rejected(text)
            raise cut_short(text)
        for meter, amount in wanted:
            _, before = reservation.extra.get((grant.owner, meter.name), (meter, 0.0))
            reservation.extra[grant.owner, meter.name] = meter, before + amount

    async def settle(
        self,
        reservation: Reservation,
        usage: Usage | None,
        seen: Seen | None = None,
        model: str | None = None,
    ) -> None:
        """Write down what a request really took; None = nobody knows, so what was reserved.

        From an answer that was `seen` to its end is learnt how long answers are. `model` is the
        one that has answered, where that is not the one that was asked for.
        """
        if reservation.settled:
            return
        taken = self._taken(reservation, usage, seen, model)
        if not reservation.local and not reservation.extra:
            if taken:
                await self._settle(taken, reservation.owner)
            return
        for owner, entries in _parts(reservation, taken).items():
            if not reservation.local:
                await self._settle(entries, owner)
            elif entries:
                await self._local.settle(entries, owner)

    def settle_now(
        self,
        reservation: Reservation,
        usage: Usage | None,
        seen: Seen | None = None,
        model: str | None = None,
    ) -> None:
        """Do what `settle` does, where the store answers at once."""
        assert self.at_once is not None
        if reservation.settled:
            return
        taken = self._taken(reservation, usage, seen, model)
        if reservation.extra:
            for owner, entries in _parts(reservation, taken).items():
                self.at_once.settle_now(entries, owner)
        elif taken:
            self.at_once.settle_now(taken, reservation.owner)

    def settle_ticket(self, ticket: Ticket, usage: Usage | None, seen: Seen | None = None) -> None:
        """Do the same for what was let in the short way; to be asked once."""
        estimate, less = ticket.estimate, 0.0
        if usage is not None and ticket.plan.counts:
            prompt, completion = usage.prompt, usage.completion
            # What is possible is believed without asking.
            if not (0 <= prompt <= LONGEST_PROMPT and 0 <= completion <= estimate.longest):
                usage = estimate.believed(usage, seen)
                prompt, completion = usage.prompt, usage.completion
            less = estimate.tokens - (prompt + completion)
            if not estimate.stated:
                self._learn(ticket, completion, seen)
        ticket.bundle.settle(less)

    def take_back(self, held: Reservation | Ticket) -> None:
        """Have a request that was refused after all not count; to be asked before it is settled."""
        if isinstance(held, Ticket):
            held.bundle.take_out(held.depths)
        else:
            held.refused = True

    async def standing(self, principal: Principal) -> list[tuple[Line, Reading]]:
        """Return how the limits and budgets of a caller stand; raise `Unavailable`.

        Those per model or address are left out: a caller may have any number of these.
        """
        lines = self._plans.everywhere(principal)
        readings = await self._store.read([line.meter for line in lines]) if lines else ()
        return list(zip(lines, readings, strict=True))

    async def aclose(self) -> None:
        """Settle what is left, as far as the store can be asked."""
        await self._arrears.aclose()

    def _asked_for(self, plan: Plan, endpoint: Endpoint, asked: InferenceRequest) -> Reservation:
        """Return how much a request takes of what it meets."""
        estimate = NOTHING
        if plan.counts:
            estimate = self._estimator.estimate(plan.subject, endpoint, asked)
        price = self._pricing.price(asked.model) if plan.costs else None
        return Reservation(plan, asked, estimate, price)

    def _let_in(
        self, reservation: Reservation, wanted: Wanted, grant: Grant, asked_at: float
    ) -> None:
        plan = reservation.plan
        if not grant.granted:
            text, error = refusal(plan, wanted, grant.readings, grant.refused)
            self._counters.limit_rejected(text)
            raise error
        reservation.amounts = wanted
        reservation.owner = grant.owner
        reservation.head_lines = standing(plan, grant.readings)
        if plan.let_in and not reservation.local:
            reservation.depths = fill(plan.let_in, asked_at)
        if plan.soft:
            self._warn_of_budgets(reservation, grant.readings)

    def _taken(
        self,
        reservation: Reservation,
        usage: Usage | None,
        seen: Seen | None,
        model: str | None,
    ) -> list[Settled]:
        """Return what a request has really taken, meter by meter; to be asked once."""
        reservation.settled = True
        plan, cost = reservation.plan, 0.0
        if plan.counts and usage is not None:
            usage = reservation.estimate.believed(usage, seen)
            if not reservation.estimate.stated:
                self._learn(reservation, usage.completion, seen)
            price = self._pricing.of_answer(reservation, model)
            if price is not None:
                cost = price.cost(usage)
        local = reservation.local
        taken: list[Settled] = []
        for line, (meter, amount) in zip(plan.lines, reservation.amounts, strict=True):
            unit = line.unit
            if unit == "req" and not local:
                continue  # it was one, and stays one
            if unit == "concurrent":
                actual = 0.0
            elif unit == "req":
                actual = 0.0 if reservation.refused else amount
            elif usage is None:
                actual = amount
            else:
                actual = cost if unit == "usd" else usage.prompt + usage.completion
            if unit != "req":
                taken.append((meter, amount, actual))
            if local and actual:
                self._arrears.keep((line.meter, 0.0, actual), owner="")
        if reservation.refused and reservation.depths is not None:
            rests = take_out(reservation.depths, clock.now())
            requests = (line.unit == "req" for line in plan.lines)
            meters = compress(reservation.amounts, requests)
            for (meter, amount), rest in zip(meters, rests, strict=True):
                taken.append((meter, amount, amount - rest))
        return taken

    def _learn(self, held: Reservation | Ticket, completion: int, seen: Seen | None) -> None:
        """Learn what is usual from an answer that its caller has not limited."""
        if completion and seen is not None and seen.finished:
            self._estimator.learn(held.plan.subject, held.asked, completion)

    async def _take_here(self, reservation: Reservation, wanted: Wanted) -> tuple[Wanted, Grant]:
        if not self._away:
            self._away = True
            log.warning("the store cannot be asked: each worker keeps its share of the limits")
        if reservation.plan.hard and self._closed:
            raise StoreUnavailable(
                "Budgets cannot be looked up now. Try again soon.", retry_after=AWAY
            )
        reservation.local = True
        wanted = reservation.wanted_here(wanted)
        return wanted, await self._local.take(wanted)

    async def _settle(self, taken: Sequence[Settled], owner: str) -> None:
        if self._store.available:
            await self._store.settle(taken, owner)
        else:
            for settled in taken:
                self._arrears.keep(settled, owner)

    def _warn_of_budgets(self, reservation: Reservation, readings: Sequence[Reading]) -> None:
        for place in reservation.plan.soft:
            line, reading = reservation.plan.lines[place], readings[place]
            if reading.left + reservation.amounts[place][1] > 0:
                continue  # not spent before this request
            if BUDGET_REACHED not in reservation.head_lines:
                reservation.head_lines += BUDGET_REACHED
            self._counters.soft_budget_reached(line.text)
            if self._may_warn(line.meter.name, reading.resets_in):
                subject = reservation.plan.subject
                log.warning("a soft budget is spent: %s, %s", line.text, subject)

    def _may_warn(self, of: str, seconds: float) -> bool:
        """Tell whether to warn of something now, and do not for some seconds."""
        now = clock.now()
        if self._warned.get(of, 0.0) > now:
            return False
        if len(self._warned) >= MOST_WARNINGS and of not in self._warned:
            del self._warned[next(iter(self._warned))]
        self._warned[of] = now + seconds
        return True


def _parts(reservation: Reservation, taken: list[Settled]) -> dict[str, list[Settled]]:
    """Return all that is to be settled by owner, what was reserved later included."""
    by_owner = {reservation.owner: taken}
    for (owner, _), (meter, amount) in reservation.extra.items():
        by_owner.setdefault(owner, []).append((meter, amount, 0.0))
    return by_owner
