"""10,000 keep-alive sockets that do nothing, where fewer may be open."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from benchmarks.hardship.findings import Finding, out_of_order
from benchmarks.hardship.stage import ALIVE, SETTLE, Collapse, proxied

MANY = 10_000
CAP = 9_000
QUIET = 10.0  # seconds of looking at a process that has nothing to do
SPIN = 2.0  # percent of a core: the tick over all deadlines, and the publishing of counters
HEAVY = 16.0  # KiB for one that does nothing
KIB = 1024


class Idler(asyncio.Protocol):
    """Asks once and keeps the connection."""

    def __init__(self, number: int, closed: list[int]) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self._number = number
        self._closed = closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(ALIVE)

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(data.startswith(b"HTTP/1.1 200 "))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.append(self._number)
        if not self.answered.done():
            self.answered.set_result(False)


async def findings(minutes: float) -> list[Finding]:
    """Open them in order, look at the process while they rest, and at who had to go."""
    closed: list[int] = []
    loop = asyncio.get_running_loop()
    async with proxied("http://127.0.0.1:9", max_connections=CAP) as proxy:
        asleep = await _cores(proxy.tree.cpu_ns)
        before = proxy.memory()
        idlers: list[Idler] = []
        for number in range(MANY):
            idler = Idler(number, closed)
            await loop.create_connection(lambda made=idler: made, "127.0.0.1", proxy.port)  # type: ignore[misc]
            if not await idler.answered:
                raise Collapse(f"socket {number} got no answer")
            idlers.append(idler)
            if number == CAP - 1:
                await asyncio.sleep(SETTLE)
                full = proxy.memory() - before
        await asyncio.sleep(SETTLE)
        over = proxy.memory() - before
        idle = await _cores(proxy.tree.cpu_ns)
        gone = list(closed)
        last = Idler(MANY, closed)
        await loop.create_connection(lambda: last, "127.0.0.1", proxy.port)
        served = await last.answered
        for each in [*idlers, last]:
            each.transport.abort()
        await asyncio.sleep(SETTLE)
        left = proxy.memory() - before
        troubles = proxy.troubles()
    oldest = set(range(MANY - CAP))
    return [
        Finding(
            what=f"sockets closed that were not among the {MANY - CAP:,} idle for longest",
            measured=len(oldest.symmetric_difference(gone)),
            unit="",
            limit=0,
        ),
        Finding(
            what="sockets closed after one that was idle for less long",
            measured=out_of_order(gone),
            unit="",
            limit=0,
        ),
        Finding(
            what="requests without an answer, above the cap too",
            measured=0 if served else 1,
            unit="",
            limit=0,
        ),
        Finding(what="CPU with all of them idle", measured=idle, unit="% of a core", limit=SPIN),
        Finding(what="CPU without any of them", measured=asleep, unit="% of a core"),
        Finding(
            what=f"memory of an idle socket, mean of {CAP:,}",
            measured=full / CAP / KIB,
            unit="KiB",
            limit=HEAVY,
        ),
        Finding(
            what=f"memory after {MANY - CAP:,} more came and went, more than with {CAP:,}",
            measured=(over - full) / KIB,
            unit="KiB",
        ),
        Finding(
            what="memory when all have gone, more than before", measured=left / KIB, unit="KiB"
        ),
        Finding(what="crashes in the log", measured=troubles, unit="", limit=0),
    ]


async def _cores(used: Callable[[], int]) -> float:
    """Return the percentage of a core that is used while nothing happens."""
    before, began = used(), time.monotonic()
    await asyncio.sleep(QUIET)
    return (used() - before) / 1e9 / (time.monotonic() - began) * 100
