"""What is charged, after finishes, refusals, faults and hangups in any order."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from llmproxy.auth.keys import keys
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.records import Principal
from llmproxy.settings.engines import FIELDS
from llmproxy.store.redis import RedisStore
from llmproxy.store.urls import place
from tests.limits.fleet import fleet
from tests.limits.hammer import CANARY, Hammer, Tenant
from tests.support.client import raw_client
from tests.support.redis_server import RedisServer
from tests.support.rig import proxied
from tests.support.upstream import scripted

TENANTS = [Tenant(number) for number in range(12)]
SETTLED = 5.0  # seconds in which everything has to be settled; it takes some 10 ms


def principals() -> dict[str, Principal]:
    entries = keys(",".join(tenant.entry for tenant in TENANTS), fields=FIELDS, environ={})
    return {entry.principal.name: entry.principal for entry in entries}


async def nothing_is_held(limiter: Limiter, hammer: Hammer) -> None:
    """Compare what is charged with what is owed, once nothing is held any more."""
    began = time.monotonic()
    while True:
        wrong = {}
        for name, principal in principals().items():
            for line, reading in await limiter.standing(principal):
                used = line.meter.limit - reading.left
                expected = 0 if line.unit == "concurrent" else hammer.owed[name]
                if used != expected:
                    wrong[name, line.text] = used, expected
        if not wrong:
            return
        assert time.monotonic() - began < SETTLED, wrong
        await asyncio.sleep(0.02)


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Limiter]:
    """Look into the store of a proxy that runs elsewhere."""
    async with aclosing(RedisStore(place(url), patience=SETTLED)) as store:
        yield Limiter(store, store)


async def test_a_ledger_in_memory_is_true() -> None:
    """To the token, and nothing is held in the end."""
    hammer = Hammer(TENANTS, seed=1)
    async with (
        scripted(hammer.script) as engine,
        proxied(
            engine.url,
            keys=",".join(tenant.entry for tenant in TENANTS),
            charge_cancelled="none",
        ) as rig,
    ):
        await hammer.strike(rig.port, requests=400, clients=12)
        running = rig.app._running
        assert running is not None
        await nothing_is_held(running.engines.limiter, hammer)

    assert hammer.endings["json 200"] > 100 and hammer.endings["stream 200"] > 50
    assert hammer.foreign == []


async def test_a_ledger_of_several_workers_is_true(fresh_redis: RedisServer) -> None:
    """The same over four workers; and nobody has seen, nor written down, what is another's."""
    hammer = Hammer(TENANTS, seed=2)
    async with (
        asking(fresh_redis.url) as limiter,
        fleet(
            hammer.script,
            keys=[tenant.entry for tenant in TENANTS],
            store=fresh_redis.url,
            workers=4,
            charge_cancelled="none",
            log_level="debug",
        ) as running,
    ):
        await hammer.strike(running.proxy.port, requests=600, clients=16)
        await nothing_is_held(limiter, hammer)
        async with raw_client(port=running.proxy.port) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nhost: proxy.test\r\n\r\n")
            metrics = (await client.answer(to=b"GET")).body

    assert hammer.endings["json 200"] > 150 and hammer.endings["stream 200"] > 80
    assert hammer.foreign == []
    assert b"llmproxy_" in metrics
    assert CANARY.findall(metrics + running.log.encode()) == []
    assert "secret-of-" not in running.log
