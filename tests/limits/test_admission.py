"""A proxy that lets only so many requests be at work."""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.limits.fleet import MODEL, Fleet, ask, fleet, question
from tests.server.family import until
from tests.support.client import RawClient, raw_client
from tests.support.upstream import Exchange

ENOUGH = 20_000  # tokens
ADA, BOB = "secret-of-ada", "secret-of-bob"


class Patient:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self._waiting: list[asyncio.Event] = []

    async def script(self, exchange: Exchange) -> None:
        await exchange.request()
        self.asked += 1
        told = asyncio.Event()
        self._waiting.append(told)
        await told.wait()
        exchange.json(answer(1))

    def finish(self) -> None:
        """Answer the oldest."""
        self._waiting.pop(0).set()

    async def has(self, count: int) -> None:
        await until(lambda: self.asked >= count, f"{count} requests reached the engine")


def answer(completion: int) -> dict[str, object]:
    usage = {"prompt_tokens": 1, "completion_tokens": completion, "total_tokens": completion + 1}
    return {"object": "chat.completion", "model": MODEL, "choices": [], "usage": usage}


async def waiting(running: Fleet, count: int) -> None:
    """Wait until so many are in the queue."""
    async with raw_client(port=running.proxy.port) as client:
        while True:
            client.send(b"GET /metrics HTTP/1.1\r\nhost: proxy.test\r\n\r\n")
            page = (await client.answer(to=b"GET")).body.decode()
            if f"\nllmproxy_queue_depth {count:.1f}\n" in page:
                return
            await asyncio.sleep(0.02)


async def callers(stack: AsyncExitStack, running: Fleet, count: int) -> list[RawClient]:
    return [
        await stack.enter_async_context(raw_client(port=running.proxy.port)) for _ in range(count)
    ]


async def test_the_others_wait_and_have_the_slots_that_become_free() -> None:
    """Two at work, two in the queue, and for the fifth there is no place."""
    engine = Patient()
    async with (
        fleet(engine.script, max_inflight="2", queue_size="2") as running,
        AsyncExitStack() as stack,
    ):
        clients = await callers(stack, running, 6)
        for client in clients[:2]:
            client.send(question(None))
        await engine.has(2)
        for place, client in enumerate(clients[2:4], 1):
            client.send(question(None))
            await waiting(running, place)
        refused = await ask(clients[4], None)
        assert engine.asked == 2

        clients[2].close()  # the first of those who wait leaves
        await waiting(running, 1)
        clients[5].send(question(None))
        await waiting(running, 2)
        for _ in range(2):
            engine.finish()
        await engine.has(4)
        for _ in range(2):
            engine.finish()
        statuses = [(await clients[n].answer()).status for n in (0, 1, 3, 5)]

    assert (refused.status, b"overloaded" in refused.body) == (503, True)
    assert 1 <= int(refused.header(b"retry-after") or 0) <= 60
    assert statuses == [200] * 4
    assert engine.asked == 4  # whoever left has cost the engine nothing


async def test_nobody_waits_in_vain() -> None:
    """Not longer than the queue's time, and not beyond the time that the caller has set."""
    engine = Patient()
    async with (
        fleet(engine.script, max_inflight="1", queue_timeout="0.4") as running,
        AsyncExitStack() as stack,
    ):
        first, second, third = await callers(stack, running, 3)
        first.send(question(None))
        await engine.has(1)
        began = time.monotonic()
        too_long, too_late = await asyncio.gather(
            timed(second), timed(third, headers=[(b"x-llmproxy-timeout", b"0.2")])
        )
        assert time.monotonic() - began < 10
        engine.finish()
        assert (await first.answer()).status == 200

    assert (too_long[0], too_late[0]) == (503, 504)
    assert too_late[1] < too_long[1] and too_long[1] >= 0.39
    assert engine.asked == 1


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_who_gets_no_place_has_lost_no_request(store: str, tmp_path: Path) -> None:
    """Neither where the queue is full, nor after a wait in vain; garbage is a request."""
    engine = Patient()
    url = f"sqlite://{tmp_path}/store.db" if store == "sqlite" else store
    async with (
        fleet(
            engine.script,
            store=url,
            limits="6 req/day, 1000 tok/day",
            max_inflight="1",
            queue_size="2",
            queue_timeout="0.4",
        ) as running,
        AsyncExitStack() as stack,
    ):
        first, second, third, fourth = await callers(stack, running, 4)
        first.send(question(None))
        await engine.has(1)
        second.send(question(None))
        third.send(question(None))
        await waiting(running, 2)
        statuses = [(await ask(fourth, None)).status for _ in range(20)]
        statuses += [(await client.answer()).status for client in (second, third)]
        statuses.append((await ask(fourth, None, headers=[PRIORITY])).status)
        engine.finish()
        assert (await first.answer()).status == 200
        first.send(question(None))
        await engine.has(2)
        engine.finish()
        answer = await first.answer()

    assert statuses == [503] * 22 + [400]
    assert answer.status == 200
    # Three were requests: the two that were answered, and the one that could not be understood.
    assert answer.header(b"x-ratelimit-remaining-requests") == b"3"


PRIORITY = (b"x-llmproxy-priority", b"high")


async def timed(client: RawClient, **more: object) -> tuple[int, float]:
    began = time.monotonic()
    refused = await ask(client, None, **more)
    assert refused.header(b"retry-after") is not None
    return refused.status, time.monotonic() - began


async def test_shares_are_counted_in_tokens() -> None:
    """Three to one, although the one with the smaller share asks for five times as much."""
    served: Counter[str] = Counter()
    sizes = {"ada": 20, "bob": 100}

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        who = "ada" if b'"ada"' in request.body else "bob"
        await asyncio.sleep(0.001)
        if served.total() < ENOUGH:
            served[who] += sizes[who]
        exchange.json(answer(sizes[who] - 1))

    keys = [f"ada:{ADA};weight=3", f"bob:{BOB}"]
    async with (
        fleet(script, keys=keys, max_inflight="2") as running,
        AsyncExitStack() as stack,
    ):

        async def insist(client: RawClient, who: str, key: str) -> None:
            while served.total() < ENOUGH:
                assert (await ask(client, key, user=who)).status == 200

        clients = await callers(stack, running, 16)
        await asyncio.gather(
            *(insist(client, "ada", ADA) for client in clients[::2]),
            *(insist(client, "bob", BOB) for client in clients[1::2]),
        )

    assert 2.7 < served["ada"] / served["bob"] < 3.3
