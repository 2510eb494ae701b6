"""What holds for every request of one app, whichever its store is.

What it meets, how much it asks for, whether it is let in, and what it really took.
"""

import logging
from collections.abc import Sequence
from itertools import compress
from typing import Protocol

from llmproxy import clock
from llmproxy.rate_limit.depths import fill, take_out
from llmproxy.rate_limit.estimate import NOTHING, Estimator, Seen
from llmproxy.rate_limit.openai_headers import BUDGET_REACHED
from llmproxy.rate_limit.plans import Plan, Plans
from llmproxy.rate_limit.pricing import Pricing
from llmproxy.rate_limit.refusals import refusal, standing
from llmproxy.rate_limit.reservation import Reservation, Ticket, Wanted
from llmproxy.rate_limit.unsettled import Settled
from llmproxy.records import Endpoint, InferenceRequest, Usage
from llmproxy.store.interface import Grant, Reading

MOST_WARNINGS = 1000  # soft budgets that have been warned of

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


class Terms:
    """The plans, what is usual and what it costs; no store."""

    def __init__(self, plans: Plans, pricing: Pricing, counters: Counters) -> None:
        self.plans = plans
        self.pricing = pricing
        self.counters = counters
        self.estimator = Estimator()
        self._warned: dict[str, float] = {}  # until when not again

    def asked_for(self, plan: Plan, endpoint: Endpoint, asked: InferenceRequest) -> Reservation:
        """Return how much a request takes of what it meets."""
        estimate = NOTHING
        if plan.counts:
            estimate = self.estimator.estimate(plan.subject, endpoint, asked)
        price = self.pricing.price(asked.model) if plan.costs else None
        return Reservation(plan, asked, estimate, price)

    def let_in(self, reservation: Reservation, wanted: Wanted, grant: Grant) -> None:
        """Note what was granted, or raise why it was not."""
        plan = reservation.plan
        if not grant.granted:
            text, error = refusal(plan, wanted, grant.readings, grant.refused)
            self.counters.limit_rejected(text)
            raise error
        reservation.amounts = wanted
        reservation.owner = grant.owner
        reservation.head_lines = standing(plan, grant.readings)
        if plan.let_in and not reservation.local:
            # From now on, and not from when it was asked for: what was let in last would else be
            # missing for as long as the way to the store takes. There is never less than nothing.
            reservation.depths = fill(plan.let_in, clock.now())
        if plan.soft:
            self._warn_of_budgets(reservation, grant.readings)

    def taken(
        self,
        reservation: Reservation,
        usage: Usage | None,
        seen: Seen | None,
        model: str | None,
    ) -> tuple[list[Settled], list[Settled]]:
        """Return what a request has really taken, meter by meter, and what it owes the store.

        It owes what it has taken while the store was away. To be asked once.
        """
        reservation.settled = True
        plan, cost = reservation.plan, 0.0
        if plan.counts and usage is not None:
            usage = reservation.estimate.believed(usage, seen)
            if not reservation.estimate.stated:
                self.learn(reservation, usage.completion, seen)
            price = self.pricing.of_answer(reservation, model)
            if price is not None:
                cost = price.cost(usage)
        local = reservation.local
        taken: list[Settled] = []
        owed: list[Settled] = []
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
                owed.append((line.meter, 0.0, actual))
        if reservation.refused and reservation.depths is not None:
            rests = take_out(reservation.depths, clock.now())
            requests = (line.unit == "req" for line in plan.lines)
            meters = compress(reservation.amounts, requests)
            for (meter, amount), rest in zip(meters, rests, strict=True):
                taken.append((meter, amount, amount - rest))
        return taken, owed

    def learn(self, held: Reservation | Ticket, completion: int, seen: Seen | None) -> None:
        """Learn what is usual from an answer that its caller has not limited."""
        if completion and seen is not None and seen.finished:
            self.estimator.learn(held.plan.subject, held.asked, completion)

    def _warn_of_budgets(self, reservation: Reservation, readings: Sequence[Reading]) -> None:
        for place in reservation.plan.soft:
            line, reading = reservation.plan.lines[place], readings[place]
            if reading.left + reservation.amounts[place][1] > 0:
                continue  # not spent before this request
            if BUDGET_REACHED not in reservation.head_lines:
                reservation.head_lines += BUDGET_REACHED
            self.counters.soft_budget_reached(line.text)
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
