"""1,000 clients vanish at once in the middle of large streams.

They are one process, which is killed. The engines' side is ours and sees each connection end.
"""

import asyncio
import sys

from benchmarks.hardship.findings import Finding, quantile
from benchmarks.hardship.flood import Flood, flooding
from benchmarks.hardship.stage import (
    ALIVE,
    SETTLE,
    Collapse,
    Proxy,
    probed,
    proxied,
    running,
)

MANY = 1_000
ROUNDS = 3
SIZE = 4_096  # bytes of a chunk,
PAUSE = 0.2  # seconds apart: 20 MiB a second in all
LAG = 50.0  # ms
RELEASED = 1.0  # seconds
PATIENCE = 30.0
RATE = 500
SECONDS = 4.0


async def findings(minutes: float) -> list[Finding]:
    """Some rounds; the worst of each figure counts."""
    lags: list[float] = []
    before: list[float] = []
    waits: list[float] = []
    took: list[float] = []
    async with flooding(size=SIZE, pause=PAUSE) as flood, proxied(flood.port) as proxy:
        start = proxy.memory()
        for _ in range(ROUNDS):
            calm, lag, seconds, longest = await _vanish(flood, proxy)
            before.append(calm)
            lags.append(lag)
            took.append(seconds)
            waits.append(longest)
        await asyncio.sleep(SETTLE)
        left = proxy.memory() - start
        troubles = proxy.troubles()
    doubt = ""
    if max(before) > LAG:
        doubt = f"the loop was {max(before):.0f} ms late before anybody vanished"
    return [
        Finding(
            what="loop lag by the metric while they vanish, upper bound of its bucket",
            measured=max(lags),
            unit="ms",
            limit=LAG,
            doubt=doubt,
        ),
        Finding(what="the same with all of them streaming", measured=max(before), unit="ms"),
        Finding(
            what="longest wait of a client that asks 500 times a second meanwhile",
            measured=max(waits),
            unit="ms",
        ),
        Finding(
            what="until the last engine was let go",
            measured=max(took),
            unit="s",
            limit=RELEASED,
            doubt=doubt,
        ),
        Finding(
            what=f"memory after {ROUNDS} times {MANY:,}, more than before",
            measured=left / 1024 / 1024,
            unit="MiB",
        ),
        Finding(what="crashes in the log", measured=troubles, unit="", limit=0),
    ]


async def _vanish(flood: Flood, proxy: Proxy) -> tuple[float, float, float, float]:
    """Return lag before and while, the seconds until all were let go, and the longest wait."""
    loop = asyncio.get_running_loop()
    crowd = [sys.executable, "-m", "benchmarks.hardship.crowd"]
    crowd += ["--port", str(proxy.port), "--count", str(MANY)]
    async with running(crowd) as clients:
        assert clients.stdout is not None
        if not await asyncio.wait_for(clients.stdout.readline(), PATIENCE):
            raise Collapse("the clients could not begin")
        earlier = await proxy.lag()
        await asyncio.sleep(SETTLE)
        streaming = await proxy.lag()
        asking = asyncio.ensure_future(
            probed(proxy.port, ALIVE, rate=RATE, seconds=SECONDS, keep=True)
        )
        await asyncio.sleep(SECONDS / 2)
        at = loop.time()
        clients.kill()
        async with asyncio.timeout(PATIENCE):
            await flood.deserted()
        took = loop.time() - at
    seen = await asking
    lag = (await proxy.lag()).most_since(streaming)
    calm = streaming.most_since(earlier)
    return calm * 1000, lag * 1000, took, quantile(seen.waits, 1.0)
