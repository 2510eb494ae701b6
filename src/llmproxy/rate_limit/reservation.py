"""What one request has been let in with, and how much it asks for."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from llmproxy.rate_limit.bundle import Bundle, Taken
from llmproxy.rate_limit.depths import Depths
from llmproxy.rate_limit.estimate import Estimate
from llmproxy.rate_limit.plans import Line, Plan
from llmproxy.rate_limit.unsettled import Settled
from llmproxy.records import InferenceRequest, Usage
from llmproxy.store.interface import Meter

Wanted = Sequence[tuple[Meter, float]]


class Price(Protocol):
    """What one model's tokens cost."""

    def cost(self, usage: Usage) -> float:
        """Return what a usage costs in US dollars."""

    def most(self, prompt: float, completion: float) -> float:
        """Return the most that so many tokens may cost."""


class Reservation:
    """What is held for one request until it is settled."""

    __slots__ = (
        "allowed", "amounts", "asked", "depths", "estimate", "extra", "head_lines", "local",
        "owner", "plan", "price", "refused", "settled",
    )  # fmt: skip

    def __init__(
        self, plan: Plan, asked: InferenceRequest, estimate: Estimate, price: Price | None
    ) -> None:
        self.plan = plan
        self.asked = asked
        self.estimate = estimate
        self.price = price
        self.amounts: Wanted = ()  # one per line of the plan
        self.owner = ""  # under whose lease it is held
        self.local = False  # this worker has let it in without the store
        self.head_lines = b""  # what the answer tells of the limits
        self.allowed = estimate.output  # tokens of output that are reserved so far
        self.extra: dict[tuple[str, str], tuple[Meter, float]] = {}  # reserved while it runs
        self.depths: Depths | None = None  # in the rates of requests, as far as is known here
        self.refused = False  # after all: then it is no request either
        self.settled = False

    def take_back(self) -> None:
        """Have a request that was refused after all not count; to be asked before it is settled."""
        self.refused = True

    def parts(self, taken: list[Settled]) -> dict[str, list[Settled]]:
        """Return all that is to be settled by owner, what was reserved later included."""
        by_owner = {self.owner: taken}
        for (owner, _), (meter, amount) in self.extra.items():
            by_owner.setdefault(owner, []).append((meter, amount, 0.0))
        return by_owner

    def wanted(self) -> Wanted:
        """Return what has to be taken of each meter."""
        plan = self.plan
        if not plan.counts:
            return plan.fixed
        return [(line.meter, line.fixed or self._amount(line)) for line in plan.lines]

    def wanted_here(self, wanted: Wanted) -> Wanted:
        """Return the same for the share that this worker has by itself."""
        return [
            # What the whole limit would have let in is not refused because the share is less:
            # it waits until the share is untouched, and is charged in full.
            (line.local, min(amount, line.local.limit) if amount <= line.meter.limit else amount)
            if line.kind == "limit"
            else (line.local, amount)
            for line, (_, amount) in zip(self.plan.lines, wanted, strict=True)
        ]

    def _amount(self, line: Line) -> float:
        estimate, price = self.estimate, self.price
        # A rate makes up for a wrong guess by itself; what must not be overspent does not.
        prompt = estimate.dense if line.kind in ("hard", "cut") else estimate.prompt
        if line.unit == "tok":
            full, sure = prompt + estimate.output, estimate.prompt + estimate.sure_output
            each = 1.0
        elif price is None:
            return 0.0
        else:
            full = price.most(prompt, estimate.output)
            sure = price.most(estimate.prompt, estimate.sure_output)
            each = price.most(0, 1)
        limit = line.meter.limit
        if full <= limit:
            return full
        if line.kind == "cut" and each:
            # Less is reserved than was guessed: beyond it a stream has to ask.
            within = estimate.sure_output + max(0.0, limit - sure) / each
            self.allowed = min(self.allowed, within)
        # Nobody is turned away for ever by a guess, only by what was asked for.
        return max(limit, sure)


class Ticket(msgspec.Struct, frozen=True, gc=False):  # as an estimate is, for the same reason
    """What is held for a request that meets nothing but limits, all of them counted here."""

    bundle: Bundle
    plan: Plan
    asked: InferenceRequest
    estimate: Estimate
    head_lines: bytes
    taken: Taken

    def take_back(self) -> None:
        """Have a request that was refused after all not count; its place is free by `settle`."""
        self.bundle.take_out(self.taken)
