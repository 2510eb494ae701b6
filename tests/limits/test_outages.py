"""Redis goes away and comes back while requests flow."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.secrets import new_key
from llmproxy.store.redis import RedisStore
from llmproxy.store.urls import place
from tests.limits.bursts import EXACT, LIMIT, WISHES
from tests.limits.fleet import Fleet, answers_at_once, ask, burst, fleet
from tests.support.client import Answer, RawClient
from tests.support.redis_server import RedisServer

PATIENCE = 5.0  # seconds in which everything is as it was
SLOW = 1.0  # seconds; a busy machine is slow, but not as slow as one that waits for Redis

CONFIGURED = "secret-of-a-configured-key"
CONFIGURED_KEYS = (
    f"ada:{CONFIGURED};limits=1000000 req/min",
    "shared:secret-of-the-share;limits=40 req/hour",
    "again:secret-of-another-share;limits=40 req/hour",
    "paying:secret-of-a-payer;budget=1000000 tok/day",
)


@dataclass
class Flow:
    """Requests one after the other with keys that are known, and what became of them."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    stood_still: float = 0.0  # seconds in which this very process did not run, and nobody waited

    async def go_on(self, client: RawClient, key: str) -> None:
        while True:
            began = time.monotonic() - self.stood_still
            self.statuses[(await ask(client, key)).status] += 1
            await asyncio.sleep(0.002)  # or the test would measure how busy the machine is
            took = time.monotonic() - self.stood_still - began
            self.slowest = max(self.slowest, took)

    async def look_at_the_clock(self) -> None:
        while True:
            looked = time.monotonic()
            await asyncio.sleep(0.001)
            self.stood_still += max(0.0, time.monotonic() - looked - 0.01)


@asynccontextmanager
async def flowing(clients: list[RawClient], *keys: str) -> AsyncIterator[Flow]:
    """Keep asking for as long as the block lasts."""
    flow = Flow()
    pairs = [(client, keys[number % len(keys)]) for number, client in enumerate(clients)]
    tasks = [asyncio.create_task(flow.go_on(*pair)) for pair in pairs]
    tasks.append(asyncio.create_task(flow.look_at_the_clock()))
    try:
        yield flow
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), ended


@asynccontextmanager
async def two_workers(redis: RedisServer) -> AsyncIterator[tuple[Fleet, str]]:
    """A proxy, and a key that was issued and is known to both of its workers."""
    async with aclosing(RedisStore(place(redis.url), patience=PATIENCE)) as store:
        issued = (await IssuedKeys(store).create("bob")).secret
    async with fleet(
        answers_at_once, keys=CONFIGURED_KEYS, store=redis.url, workers=2, patient=False
    ) as running:
        yield running, issued


def told_to_wait(answer: Answer) -> bool:
    """Tell whether this is the refusal of somebody about whom nothing can be known now."""
    after = answer.header(b"retry-after")
    return answer.status == 503 and after is not None and 0 < int(after) <= PATIENCE


async def answered(client: RawClient, key: str) -> float:
    """Ask until the answer is 200; return how long that took."""
    began = time.monotonic()
    while (answer := await ask(client, key)).status != 200:
        assert told_to_wait(answer)
        assert time.monotonic() - began < PATIENCE
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def kill(redis: RedisServer) -> None:
    redis.kill()


def freeze(redis: RedisServer) -> None:
    redis.freeze()


@pytest.mark.parametrize("goes_away", [kill, freeze])
async def test_known_callers_do_not_notice(
    fresh_redis: RedisServer, goes_away: Callable[[RedisServer], None]
) -> None:
    """Limits are kept by shares, budgets are not guessed at, nobody known gets a 401."""
    async with two_workers(fresh_redis) as (running, issued), running.crew(4) as crew:
        (one, *first), (other, *second) = crew
        for client in (one, other):
            for key in (CONFIGURED, issued, "secret-of-a-payer"):
                await answered(client, key)

        async with flowing([first.pop(), second.pop()], CONFIGURED) as flow:
            async with flowing([first.pop(), second.pop()], issued) as known:
                await asyncio.to_thread(goes_away, fresh_redis)
                shares = await asyncio.gather(
                    burst([one, *first], "secret-of-the-share", 100),
                    burst([other, *second], "secret-of-the-share", 100),
                )
                for client in (one, other):
                    assert told_to_wait(await ask(client, "secret-of-a-payer"))
                    assert told_to_wait(await ask(client, new_key()))  # it may be a good one
                    assert (await ask(client, "sk-nobody")).status == 401  # this cannot
            await asyncio.to_thread(fresh_redis.clear)
            for client in (one, other):
                await answered(client, "secret-of-a-payer")
        everybody = [one, other, *first, *second]
        after = await burst(everybody, "secret-of-another-share", WISHES)

    assert [*shares] == [Counter({200: LIMIT // 2, 429: 100 - LIMIT // 2})] * 2
    assert after == EXACT or running.gave_up > 4  # kept together again
    assert set(flow.statuses) == set(known.statuses) == {200}
    assert min(flow.statuses.total(), known.statuses.total()) > 10
    assert max(flow.slowest, known.slowest) < SLOW


async def test_a_server_that_forgets_lets_nobody_in_twice(fresh_redis: RedisServer) -> None:
    """FLUSHALL, a lost script and a restart cost a window at most, and never an error."""
    async with two_workers(fresh_redis) as (running, _), running.crew(4) as crew:
        clients = [client for several in crew for client in several[1:]]
        async with flowing([several[0] for several in crew], CONFIGURED) as flow:
            admitted = await burst(clients, "secret-of-the-share", WISHES)
            for command in (["SCRIPT", "FLUSH"], ["FLUSHALL"]):
                await asyncio.to_thread(fresh_redis.ask, *command)
                admitted += await burst(clients, "secret-of-the-share", WISHES)
            await asyncio.to_thread(fresh_redis.restart)
            for client in clients:
                await answered(client, "secret-of-a-payer")
            admitted += await burst(clients, "secret-of-the-share", WISHES)

    # The keys are forgotten twice; a script is only sent again.
    assert admitted[200] == 3 * LIMIT or running.gave_up > 4
    assert admitted[429] == 4 * WISHES - admitted[200]
    assert set(flow.statuses) == {200}
    assert flow.slowest < SLOW
