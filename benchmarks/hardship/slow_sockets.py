"""2,000 sockets that are as slow as they can: heads, bodies, and nothing at all.

In each round the same client is measured three times: alone; beside 2,000 slow sockets that
torment a bare server on this machine, which the proxy has nothing to do with; and beside 2,000
that torment the proxy. The second tells what the tormentors cost the machine.
"""

import asyncio
from typing import cast

from benchmarks.hardship.findings import Finding, paired, quantile
from benchmarks.hardship.stage import SETTLE, Collapse, listening, probed, proxied
from benchmarks.load import wire

MANY = 2_000
ROUNDS = 5
DEADLINE = 8.0  # seconds; of a head, a body, and a connection that says nothing
NOTICED = 1.5  # seconds after it: a tick, the last word, and the client's time to close
RATE = 200
SECONDS = 5.0
UNCHANGED = 1.5  # p99 of a thousand requests: two rounds of the same differ by as much

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: " + b"y" * 1000
BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: 1000\r\n\r\n"
)


class Slow(asyncio.Protocol):
    """One socket; `pause` seconds between two bytes, 0 for one that sends none."""

    def __init__(self, first: bytes, drip: bytes, pause: float) -> None:
        self.opened_at = 0.0
        self.closed_after: float | None = None
        self._first = first
        self._drip = drip
        self._pause = pause
        self._place = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self.opened_at = self._loop.time()
        if self._first:
            self.transport.write(self._first)
        if self._pause:
            self._timer = self._loop.call_later(self._pause, self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_after = self._loop.time() - self.opened_at
        if self._timer is not None:
            self._timer.cancel()

    def _go_on(self) -> None:
        self.transport.write(self._drip[self._place : self._place + 1])
        self._place += 1
        self._timer = self._loop.call_later(self._pause, self._go_on)


KINDS = ((b"", HEAD, 1.0), (BODY, b"z" * 1000, 0.1), (b"", b"", 0.0))


async def findings(minutes: float) -> list[Finding]:
    """As many rounds as are needed for a median."""
    request = wire.request(1)
    alone: list[float] = []
    elsewhere: list[float] = []
    beside: list[float] = []
    calm: list[float] = []  # percent of a core that the proxy used meanwhile
    busy: list[float] = []
    closed: list[float] = []
    open_still = lost = 0
    async with (
        listening("benchmarks.load.model_server") as engine,
        listening("benchmarks.hardship.bare_server") as bare,
        proxied(engine, timeout_head=DEADLINE, timeout_body=DEADLINE) as proxy,
    ):

        async def p99() -> float:
            nonlocal lost
            seen = await probed(proxy.port, request, rate=RATE, seconds=SECONDS, keep=True)
            if set(seen.statuses) != {"200"}:
                raise Collapse(f"normal requests were answered with {seen.statuses}")
            lost += seen.lost
            return quantile(seen.waits, 0.99)

        await p99()
        for _ in range(ROUNDS):
            used = proxy.tree.cpu_ns()
            alone.append(await p99())
            calm.append((proxy.tree.cpu_ns() - used) / 1e7 / SECONDS)
            crowd = await _torment(bare)
            elsewhere.append(await p99())
            _release(crowd)
            await asyncio.sleep(SETTLE)
            crowd = await _torment(proxy.port)
            used = proxy.tree.cpu_ns()
            beside.append(await p99())
            busy.append((proxy.tree.cpu_ns() - used) / 1e7 / SECONDS)
            await asyncio.sleep(max(0.0, DEADLINE + NOTICED + SETTLE - _age(crowd)))
            open_still += sum(slow.closed_after is None for slow in crowd)
            closed += [slow.closed_after for slow in crowd if slow.closed_after is not None]
            _release(crowd)
            await asyncio.sleep(SETTLE)
        troubles = proxy.troubles()
    doubt = ""
    if (harm := paired(alone, elsewhere)) > UNCHANGED:
        doubt = f"beside those that torment another server it is {harm:.1f} x as well"
    unsteady = ""
    if max(alone) > UNCHANGED * min(alone):
        unsteady = f"alone it was between {min(alone):.1f} and {max(alone):.1f} ms"
    return [
        Finding(
            what=f"sockets open {NOTICED:g} s after the deadline of {DEADLINE:g} s",
            measured=open_still + sum(after > DEADLINE + NOTICED for after in closed),
            unit="",
            limit=0,
        ),
        Finding(what="closed after, at most", measured=max(closed, default=0.0), unit="s"),
        Finding(what="closed after, at least", measured=min(closed, default=0.0), unit="s"),
        Finding(
            what="p99 of normal requests beside them, to alone (median of rounds)",
            measured=paired(alone, beside),
            unit="x",
            limit=UNCHANGED,
            doubt=doubt or unsteady,
        ),
        Finding(
            what="p99 beside them, to beside those that torment another server",
            measured=paired(elsewhere, beside),
            unit="x",
            limit=UNCHANGED,
            doubt=unsteady,
        ),
        Finding(what="p99 alone, median", measured=quantile(alone, 0.5), unit="ms"),
        Finding(what="p99 with those elsewhere", measured=quantile(elsewhere, 0.5), unit="ms"),
        Finding(what="p99 beside them, median", measured=quantile(beside, 0.5), unit="ms"),
        Finding(what="CPU of the proxy alone", measured=quantile(calm, 0.5), unit="% of a core"),
        Finding(what="CPU of the proxy beside", measured=quantile(busy, 0.5), unit="% of a core"),
        Finding(what="normal requests without an answer", measured=lost, unit="", limit=0),
        Finding(what="crashes in the log", measured=troubles, unit="", limit=0),
    ]


async def _torment(port: int) -> list[Slow]:
    loop = asyncio.get_running_loop()
    crowd = []
    for number in range(MANY):
        slow = Slow(*KINDS[number % len(KINDS)])
        await loop.create_connection(lambda made=slow: made, "127.0.0.1", port)  # type: ignore[misc]
        crowd.append(slow)
    return crowd


def _age(crowd: list[Slow]) -> float:
    """Seconds since the last one was opened."""
    return asyncio.get_running_loop().time() - crowd[-1].opened_at


def _release(crowd: list[Slow]) -> None:
    for slow in crowd:
        slow.transport.abort()
