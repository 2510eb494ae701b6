"""A request that is refused behind its limits is none, in whatever store they are counted."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmproxy import clock
from llmproxy.errors import RateLimited
from llmproxy.protocol.endpoints import CHAT
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.rate_limit.reservation import Reservation, Ticket
from llmproxy.records import InferenceRequest, Principal, Usage
from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from tests.support.wire import patience

ANNA = Principal(id="key_1", name="anna", team="blue")
BERT = Principal(id="key_2", name="bert", team="blue")
ASKED = InferenceRequest(model="llama", max_tokens=100, prompt_bytes=400)
LIMITS = "4 req/day, 6 req/hour per team, 1000 tok/day, 3 concurrent"

Held = Reservation | Ticket


class Callers:
    """Requests as the layer makes them, the short way where a store is this very process."""

    def __init__(self, store: Store, text: str = LIMITS, budget: str = "") -> None:
        self.limiter = Limiter(
            store,
            store,
            limits=limits(text),
            budgets=budgets(budget),
            at_once=store if isinstance(store, MemoryStore) else None,
        )

    async def ask(self, who: Principal = ANNA) -> Held:
        if self.limiter.at_once is not None:
            return self.limiter.at_once.reserve(who, None, CHAT, ASKED)
        return await self.limiter.reserve(who, None, CHAT, ASKED)

    async def end(self, held: Held, *, refused: bool) -> None:
        usage = Usage() if refused else Usage(100, 100)
        if refused:
            held.take_back()
        at_once = self.limiter.at_once
        if isinstance(held, Reservation):
            if at_once is not None:
                at_once.settle(held, usage)
            else:
                await self.limiter.settle(held, usage)
        else:
            assert at_once is not None
            at_once.settle_ticket(held, usage)

    async def left(self, who: Principal = ANNA) -> list[float]:
        standing = await self.limiter.standing(who)
        return [round(reading.left, 1) for _, reading in standing]


@pytest.fixture(params=["", "1000000 tok/day"], ids=["limits", "and_a_budget"])
def callers(request: pytest.FixtureRequest, store: Store) -> Callers:
    """Those of one store; with a budget they go the long way in every store."""
    return Callers(store, budget=request.param)


async def test_who_is_refused_has_lost_nothing(callers: Callers) -> None:
    """Not of one of its limits, and as often as it happens."""
    before = await callers.left()
    for _ in range(20):
        await callers.end(await callers.ask(), refused=True)

    assert await callers.left() == before


async def test_who_was_served_has_had_a_request(callers: Callers) -> None:
    """Of each limit that counts it; the others who are refused meanwhile change nothing."""
    served, refused, theirs = await callers.ask(), await callers.ask(), await callers.ask(BERT)
    await callers.end(refused, refused=True)
    await callers.end(theirs, refused=True)
    await callers.end(served, refused=False)

    assert (await callers.left())[:4] == [3, 5, 800, 3]
    assert (await callers.left(BERT))[:4] == [4, 5, 1000, 3]


async def test_a_limit_stays_exact(callers: Callers) -> None:
    """Whoever comes while others wait in vain takes the place of none of those who were served.

    A shared store may take a moment to drain what its way has cost in time.
    """
    async with patience("four were served"):
        for refused in [True, False] * 4:
            while True:
                try:
                    held = await callers.ask()
                except RateLimited:
                    await asyncio.sleep(0.01)
                else:
                    break
            await callers.end(held, refused=refused)

    for _ in range(3):
        with pytest.raises(RateLimited):
            await callers.ask()


async def test_settled_twice_is_once(store: Store) -> None:
    """Also of what was taken back. (A ticket is let go of by whoever settles it.)"""
    callers = Callers(store, budget="1000000 tok/day")
    await callers.end(await callers.ask(), refused=False)
    held = await callers.ask()
    for _ in range(2):
        await callers.end(held, refused=True)

    assert (await callers.left())[:4] == [3, 5, 800, 3]


async def test_what_has_drained_does_not_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for longer than a request takes to drain has it back by then."""
    offset = 0.0
    now: Callable[[], float] = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + offset)
    callers = Callers(store, "2 req/day", "1000000 tok/day")  # the long way by our clock
    held: Any = await callers.ask()
    offset = 86_400 / 4
    await callers.end(held, refused=True)

    assert (await callers.left())[0] == 1.5
