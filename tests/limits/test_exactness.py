"""Limits over several workers: neither one more nor one less."""

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path

from tests.limits.bursts import rounds
from tests.limits.fleet import ANSWER, ask, fleet
from tests.server.family import until
from tests.support.client import RawClient
from tests.support.redis_server import RedisServer
from tests.support.upstream import Exchange

SLOTS = 8


async def exact_rounds(count: int, store: str, workers: int) -> None:
    """Hold as many rounds. One that a busy machine has kept from the store is held again.

    In such a round each worker rightly goes on with a share, see the outages.
    """
    async with aclosing(
        rounds(count, store=store, workers=workers, spare=2 * count, patient=True)
    ) as found:
        async for each in found:
            assert each.exact or each.stalled, each
            count -= not each.stalled
            if not count:
                return
    raise AssertionError("the store was too slow in most of the rounds")


async def test_a_burst_gets_exactly_the_limit_from_redis(fresh_redis: RedisServer) -> None:
    """Ten times as many wishes as the limit has places, at four workers."""
    await exact_rounds(4, fresh_redis.url, workers=4)


async def test_a_burst_gets_exactly_the_limit_from_sqlite(tmp_path: Path) -> None:
    """The same with a file."""
    await exact_rounds(3, f"sqlite:///{tmp_path}/store.db", workers=2)


class Busy:
    """An engine that notes how many requests it has at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.open = asyncio.Event()  # while it is not set, nobody is answered

    async def script(self, exchange: Exchange) -> None:
        await exchange.request()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.open.wait()
            await asyncio.sleep(0.005)
        finally:
            self.now -= 1
        exchange.json(ANSWER)


async def test_no_more_than_the_permitted_number_are_at_work(fresh_redis: RedisServer) -> None:
    """First exactly eight of forty, held; then a crowd that tries again and again."""
    busy = Busy()
    key = f"crowd:secret-of-the-crowd;limits={SLOTS} concurrent"
    async with (
        fleet(busy.script, keys=[key], store=fresh_redis.url, workers=4) as running,
        running.crew(10) as crew,
    ):
        clients = [client for several in crew for client in several]
        held = [asyncio.create_task(ask(each, "secret-of-the-crowd")) for each in clients]
        await until(
            lambda: sum(task.done() for task in held) + busy.now >= len(held),
            "everybody is at work or was refused",
        )
        busy.open.set()
        seen = Counter([(await task).status for task in held])
        assert seen == {200: SLOTS, 429: len(clients) - SLOTS} or running.gave_up

        async def insist(client: RawClient) -> int:
            """Ask until there is an answer; return how often."""
            times = 1
            while (await ask(client, "secret-of-the-crowd")).status != 200:
                times += 1
            return times

        tries = await asyncio.gather(*(insist(client) for client in clients))

    assert sum(tries) > len(clients)  # or nobody was ever in the way of anybody
    assert busy.most == SLOTS or running.gave_up
