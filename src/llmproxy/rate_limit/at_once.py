"""The limiter where the store is this very process: nothing has to be waited for.

The usual request meets nothing but limits that are counted here. It goes the short way: a `Ticket`
for a `Bundle`. Who has a budget, asks for more than a limit, or meets one that is reached, goes the
long way, as with any store.
"""

from llmproxy.rate_limit.estimate import LONGEST_PROMPT, NOTHING, Seen
from llmproxy.rate_limit.reservation import Reservation, Ticket
from llmproxy.rate_limit.terms import Terms
from llmproxy.records import Endpoint, InferenceRequest, Principal, Usage
from llmproxy.store.interface import Immediate


class AtOnce:
    """Does what `Limiter` does, without a coroutine."""

    def __init__(self, terms: Terms, store: Immediate) -> None:
        self._terms = terms
        self._store = store
        # Looked up once, and not for each request.
        self._known = terms.plans.known
        self._estimate = terms.estimator.estimate

    def reserve(
        self,
        principal: Principal | None,
        address: str | None,
        endpoint: Endpoint,
        asked: InferenceRequest,
    ) -> Reservation | Ticket:
        """Let a request in; raise `RateLimited` or `QuotaSpent`."""
        found = self._known(id(principal))
        if found is None:
            found = self._terms.plans.find(principal, address, asked.model)
        plan = found[0] if endpoint.name != "models" else found[1]
        bundle = plan.bundle
        if bundle is not None:
            estimate = self._estimate(plan.subject, endpoint, asked) if plan.counts else NOTHING
            # Who asks for more than a limit, or meets one that is reached, goes the long way.
            taken = bundle.take(estimate.tokens)
            if taken is not None:
                return Ticket(bundle, plan, asked, estimate, taken[0], taken)
        reservation = self._terms.asked_for(plan, endpoint, asked)
        if plan.lines:
            wanted = reservation.wanted()
            self._terms.let_in(reservation, wanted, self._store.take_now(wanted))
        return reservation

    def settle(
        self,
        reservation: Reservation,
        usage: Usage | None,
        seen: Seen | None = None,
        model: str | None = None,
    ) -> None:
        """Write down what a request really took, as `Limiter.settle` does."""
        if reservation.settled:
            return
        taken, _ = self._terms.taken(reservation, usage, seen, model)
        if reservation.extra:
            for owner, entries in reservation.parts(taken).items():
                self._store.settle_now(entries, owner)
        elif taken:
            self._store.settle_now(taken, reservation.owner)

    def settle_ticket(self, ticket: Ticket, usage: Usage | None, seen: Seen | None = None) -> None:
        """Do the same for what was let in the short way; to be asked once."""
        estimate, less = ticket.estimate, 0.0
        if usage is not None and ticket.plan.counts:
            prompt, completion = usage.prompt, usage.completion
            # What is possible is believed without asking: a call is a tenth of all this.
            if not (0 <= prompt <= LONGEST_PROMPT and 0 <= completion <= estimate.longest):
                usage = estimate.believed(usage, seen)
                prompt, completion = usage.prompt, usage.completion
            less = estimate.tokens - (prompt + completion)
            if not estimate.stated:
                self._terms.learn(ticket, completion, seen)
        ticket.bundle.settle(less)
