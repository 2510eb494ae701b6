"""Bodies and answers of 16 MiB: the event loop must not be held up by them.

Four clients send a body each second, all at the same moment, beside 100 normal requests a second:
pictures, token ids and Japanese, for which a stream is asked. Then the same four are sent answers
of that size, vectors and streams with one event of 16 MiB in turns. The proxy has the layers that
it has by default, and a limit.

The lag is what the proxy's own metric tells, 50 appointments a second. 64 MiB a second is far below
what the proxy could pass on; but engine and clients need the same cores, and who has to wait for
one is late as well. The kernel tells how long the proxy did. The same bodies go past the proxy
first: what its loop is late by then is the machine's doing alone.
"""

import asyncio
from dataclasses import dataclass

from benchmarks.hardship.findings import Finding, quantile
from benchmarks.hardship.kernel import waited_ns
from benchmarks.hardship.large_client import Asked
from benchmarks.hardship.prober import Probed
from benchmarks.hardship.stage import Lag, Proxy, listening, probed, proxied, told_by

AT_ONCE = 4
SECONDS = 75
PAST_IT = 30  # seconds in which the bodies go to the engine itself
RATE = 100
LATE = 50.0  # ms
MOST = 0.999  # of all appointments
IN_QUEUE = 0.1  # of the time for which the proxy had work: above it, it was not its own pace

BODY = b'{"model":"m","messages":[{"role":"user","content":"Is it large?"}]}'
NORMAL = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
LAYERS = "auth,rate_limit,routing"
LIMITS = "1000000 req/min, 1000 concurrent"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen while large requests were under way."""

    lag: Lag
    in_queue: float  # part of the time for which the proxy had work, and no core was free
    large: Asked
    normal: Probed


async def findings(minutes: float) -> list[Finding]:
    """Past the proxy, up through it, and down."""
    async with (
        listening("benchmarks.hardship.large_engine") as engine,
        proxied(engine, middleware=LAYERS, limits=LIMITS) as proxy,
    ):
        past = await _while(proxy, engine, "bodies", PAST_IT)
        up = await _while(proxy, proxy.port, "bodies", SECONDS)
        down = await _while(proxy, proxy.port, "answers", SECONDS)
        troubles = proxy.troubles()
    return [
        *_told("bodies", up),
        *_told("answers", down),
        Finding(
            what="loop lag p99.9 with the bodies going past the proxy",
            measured=past.lag.quantile(MOST) * 1000,
            unit="ms",
        ),
        Finding(what="crashes in the log", measured=troubles, unit="", limit=0),
    ]


async def _while(proxy: Proxy, port: int, kind: str, seconds: int) -> Seen:
    """See what becomes of large and of normal requests, and of the loop."""
    arguments = ["--port", str(port), "--kind", kind]
    arguments += ["--at-once", str(AT_ONCE), "--seconds", str(seconds)]
    lag, used, waited = await proxy.lag(), proxy.tree.cpu_ns(), waited_ns(proxy.tree)
    large, normal = await asyncio.gather(
        told_by("benchmarks.hardship.large_client", *arguments),
        probed(proxy.port, NORMAL, rate=RATE, seconds=seconds, keep=True),
    )
    waited = waited_ns(proxy.tree) - waited
    used = proxy.tree.cpu_ns() - used
    in_queue = waited / (waited + used)
    return Seen((await proxy.lag()).since(lag), in_queue, Asked.of(large), normal)


def _told(kind: str, seen: Seen) -> list[Finding]:
    lag, large, normal = seen.lag, seen.large, seen.normal
    refused = sum(count for status, count in normal.statuses.items() if status != "200")
    doubt = ""
    if seen.in_queue > IN_QUEUE:
        doubt = f"for {seen.in_queue:.0%} of its work the proxy had to wait for a core"
    return [
        Finding(
            what=f"{kind}: loop lag p99.9 of {lag.count:,.0f}, upper bound of its bucket",
            measured=lag.quantile(MOST) * 1000,
            unit="ms",
            limit=LATE,
            doubt=doubt,
        ),
        Finding(what=f"{kind}: loop lag p99", measured=lag.quantile(0.99) * 1000, unit="ms"),
        Finding(what=f"{kind} of 16 MiB", measured=len(large.waits) / SECONDS, unit="a second"),
        Finding(
            what=f"{kind}: requests without an answer",
            measured=large.failed + normal.lost + refused,
            unit="",
            limit=0,
        ),
        Finding(
            what=f"{kind}: p99 of normal requests beside them",
            measured=quantile(normal.waits, 0.99),
            unit="ms",
        ),
        Finding(what=f"{kind}: median wait", measured=quantile(large.waits, 0.5) * 1000, unit="ms"),
        Finding(
            what=f"{kind}: part of its work for which the proxy waited for a core",
            measured=seen.in_queue * 100,
            unit="%",
        ),
    ]
