"""A worker that is killed takes nobody's permits and nobody's tokens to its grave."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from llmproxy.store.dispatch import LEASE
from tests.limits.fleet import ANSWER, ask, fleet, question
from tests.server.family import lives, until
from tests.support.client import Answer
from tests.support.redis_server import RedisServer
from tests.support.upstream import Exchange

SLOTS = 6
KEY = "secret-of-the-holder"


async def test_permits_of_a_killed_worker_come_back(fresh_redis: RedisServer) -> None:
    """Within its lease. What other workers hold stays held, and they go on answering."""
    stuck = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        if b"wait" in request.body:
            await stuck.wait()
        exchange.json(ANSWER)

    keys = [f"holder:{KEY};limits={SLOTS} concurrent", "other:secret-of-another"]
    async with (
        fleet(script, keys=keys, store=fresh_redis.url, workers=2) as running,
        running.crew(SLOTS) as crew,
    ):
        doomed, staying = crew
        pid = sorted(running.workers.values())[0]
        for client in (*doomed[:4], *staying[:2]):
            client.send(question(KEY, user="wait"))
        await until(lambda: len(running.engine.requests) == SLOTS, "all permits are held")
        assert (await ask(staying[2], KEY)).status == 429

        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: not lives(pid), "the worker is gone")
        assert (await ask(staying[3], "secret-of-another")).status == 200
        freed: list[tuple[float, asyncio.Task[Answer]]] = []
        while len(freed) < SLOTS - 2:  # one after the other, each held once it is had
            client = staying[2 + len(freed)]
            answer = asyncio.create_task(ask(client, KEY, user="wait"))
            reached = len(running.engine.requests)
            await until(
                lambda: answer.done() or len(running.engine.requests) > reached,  # noqa: B023
                "the request was answered or passed on",
            )
            if answer.done():
                assert answer.result().status == 429
                await asyncio.sleep(0.05)
            else:
                freed.append((time.monotonic() - killed, answer))

        # It came back by the lease, and not at once by chance; how old the lease was when the
        # worker was killed depends on how busy the machine is.
        assert freed[0][0] > LEASE / 4
        assert freed[-1][0] < LEASE + 5.0
        async with running.crew() as again:
            assert {(await ask(each[0], KEY)).status for each in again} == {429}
        stuck.set()
        assert [(await each).status for _, each in freed] == [200] * (SLOTS - 2)
        assert [(await client.answer()).status for client in staying[:2]] == [200, 200]


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_tokens_of_a_killed_worker_come_back(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Within its lease; without it, the next one had to wait for hours."""
    stuck = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        asked = await exchange.request()
        if b"wait" in asked.body:
            await stuck.wait()
        exchange.json(ANSWER)

    store = f"sqlite://{tmp_path}/store.db"
    if kind == "redis":
        store = request.getfixturevalue("fresh_redis").url
    keys = [f"reader:{KEY};limits=60000 tok/day"]
    async with fleet(script, keys=keys, store=store, workers=2) as running, running.crew(5) as crew:
        doomed, staying = crew
        pid = sorted(running.workers.values())[0]
        for client in (*doomed[:4], staying[0]):
            client.send(question(KEY, max_tokens=10_000, user="wait"))
        await until(lambda: len(running.engine.requests) == 5, "all tokens are reserved")
        assert (await ask(staying[1], KEY, max_tokens=35_000)).status == 429 or running.gave_up

        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        while (answer := await ask(staying[1], KEY, max_tokens=35_000)).status == 429:
            assert time.monotonic() - killed < LEASE + 5.0
            await asyncio.sleep(0.05)

        assert answer.status == 200
        assert time.monotonic() - killed > LEASE / 4 or running.gave_up
        # What the other one has reserved is still reserved, and settled like any other.
        assert (await ask(staying[1], KEY, max_tokens=55_000)).status == 429 or running.gave_up
        stuck.set()
        assert (await staying[0].answer()).status == 200
        assert (await ask(staying[1], KEY, max_tokens=55_000)).status == 200 or running.gave_up
