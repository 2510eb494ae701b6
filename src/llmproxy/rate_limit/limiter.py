"""Let a request in or refuse it, and write down what it really took.

Rule 1: all limits and budgets of a request are asked in one step; a refused request costs
        nothing.
Rule 2: what was reserved is settled once, whatever becomes of the request.
Rule 3: while the store cannot be asked, each worker keeps its share of the limits by itself.
        Whoever has a hard budget is turned away meanwhile, unless it is configured otherwise.
"""

import logging
from collections.abc import Sequence
from typing import Literal

from llmproxy.errors import StoreUnavailable
from llmproxy.rate_limit.arrears import Arrears
from llmproxy.rate_limit.at_once import AtOnce
from llmproxy.rate_limit.estimate import Seen
from llmproxy.rate_limit.plans import Line, Plans
from llmproxy.rate_limit.pricing import Prices, Pricing
from llmproxy.rate_limit.refusals import cut_short
from llmproxy.rate_limit.reservation import Reservation, Wanted
from llmproxy.rate_limit.terms import Counters, NobodyCounts, Terms
from llmproxy.rate_limit.unsettled import Settled
from llmproxy.records import Budget, Endpoint, InferenceRequest, Limit, Principal, Usage
from llmproxy.store.interface import Grant, Immediate, Meters, Reading, Unavailable

STEP = 256  # tokens that a running stream reserves at a time, beyond its estimate
AWAY = 5  # seconds after which to ask again: within as many the store is found when it is back

ChargeCancelled = Literal["counted", "reported", "none"]

log = logging.getLogger("llmproxy")


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

        `at_once` is that store where it is this very process.
        """
        self.charge_cancelled: ChargeCancelled = charge_cancelled
        self._store = store
        self._local = local
        self._closed = store_down == "closed"
        told = counters or NobodyCounts()
        plans = Plans(limits, budgets, workers=workers, at_once=at_once)
        self._terms = Terms(plans, Pricing(prices), told)
        self.at_once = AtOnce(self._terms, at_once) if at_once is not None else None
        """Where all of a request can be done without a coroutine."""

        self._arrears = Arrears(store, told, workers=workers)
        self._away = False

    async def reserve(
        self,
        principal: Principal | None,
        address: str | None,
        endpoint: Endpoint,
        asked: InferenceRequest,
    ) -> Reservation:
        """Let a request in; raise `RateLimited`, `QuotaSpent` or `StoreUnavailable`."""
        plan = self._terms.plans.find(principal, address, asked.model)[endpoint.name == "models"]
        reservation = self._terms.asked_for(plan, endpoint, asked)
        if not plan.lines:
            return reservation
        wanted = reservation.wanted()
        try:
            grant = await self._store.take(wanted)
        except Unavailable:
            wanted, grant = await self._take_here(reservation, wanted)
        else:
            if self._away:
                self._away = False
                log.info("the store answers again: limits are kept over all workers")
        self._terms.let_in(reservation, wanted, grant)
        return reservation

    async def go_on(self, reservation: Reservation, counted: int, model: str | None = None) -> None:
        """Let a stream run on that has brought `counted` tokens; raise `QuotaSpent` to end it.

        Only for a reservation with `cut`, once `counted` is beyond what is `allowed`.
        """
        steps = max(1, -int((reservation.allowed - counted) // STEP))
        more = float(steps * STEP)
        reservation.allowed += more
        price = self._terms.pricing.of_answer(reservation, model)
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
            self._terms.counters.limit_rejected(text)
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
        taken, owed = self._terms.taken(reservation, usage, seen, model)
        for each in owed:
            self._arrears.keep(each, owner="")
        if not reservation.local and not reservation.extra:
            if taken:
                await self._settle(taken, reservation.owner)
            return
        for owner, entries in reservation.parts(taken).items():
            if not reservation.local:
                await self._settle(entries, owner)
            elif entries:
                await self._local.settle(entries, owner)

    async def standing(self, principal: Principal) -> list[tuple[Line, Reading]]:
        """Return how the limits and budgets of a caller stand; raise `Unavailable`.

        Those per model or address are left out: a caller may have any number of these.
        """
        lines = self._terms.plans.everywhere(principal)
        readings = await self._store.read([line.meter for line in lines]) if lines else ()
        return list(zip(lines, readings, strict=True))

    async def aclose(self) -> None:
        """Settle what is left, as far as the store can be asked."""
        await self._arrears.aclose()

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
