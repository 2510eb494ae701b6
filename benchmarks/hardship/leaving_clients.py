"""500 clients leave at once, in every phase of their requests.

They are one process. In one half of the rounds it closes its sockets, one as soon as the other is
closed, and notes when; the clock of each client runs from then. In the other half it is killed:
then one clock runs for all, from the signal, and the time that the kernel takes to end a process
is in it. The engines' side notes when each of its connections is closed. Of an engine that takes no
connections the kernel is asked, every 5 ms; and where no engine works for a request yet, the proxy,
how many are left: by the clock of the signal, too.
"""

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from benchmarks.hardship.findings import Finding, quantile
from benchmarks.hardship.kernel import connecting
from benchmarks.hardship.leavers import NAME, name_of
from benchmarks.hardship.stage import METRICS, SETTLE, Collapse, Proxy, listening, proxied, running
from benchmarks.hardship.witness import FEW, Silence, Witness, deafness, witnessing

MANY = 500
ROUNDS = 2  # of either way to leave
HALF = 10.0  # ms for half of them
NEARLY_ALL = 100.0  # ms for 99 of 100
PATIENCE = 30.0  # seconds
POLL = 0.005  # seconds between two looks at what nobody tells of
WAYS = (signal.SIGKILL, signal.SIGTERM)

_INFLIGHT = re.compile(rb"^llmproxy_inflight_requests (\d+)", re.MULTILINE)


def post(model: str, *, stream: bool = True, missing: int = 0) -> bytes:
    """Return a request; the end of its body may be missing."""
    body = b'{"model":"%b","user":"%b","messages":[]%b}' % (
        model.encode(),
        NAME,
        b',"stream":true' if stream else b"",
    )
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body) + missing, body)
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """Where the requests are when their clients leave."""

    name: str
    request: bytes
    silence: Silence


PHASES = (
    Phase("before the head of a stream", post("open"), Silence.HEAD),
    Phase("before the head of a whole answer", post("open", stream=False), Silence.HEAD),
    *(Phase(str(each), post("open"), each) for each in list(Silence)[1:]),
)

Waiting = Callable[[], Awaitable[int]]
"""Tells how many are still to be seen off."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How long it took, in ms, and how late the loop of the proxy was for others."""

    since_signal: list[float]
    lag: float = 0.0
    since_leaving: list[float] = field(default_factory=list)  # of each client's own


async def findings(minutes: float) -> list[Finding]:
    """Every phase, each round with clients of its own."""
    with ExitStack() as stack:
        witness = stack.enter_context(witnessing())
        deaf = stack.enter_context(deafness())
        bare = await _bare(witness)
        upstreams = (
            f"open=http://127.0.0.1:{witness.port};models=open,"
            f"deaf=http://127.0.0.1:{deaf};models=deaf,"
            f"full=http://127.0.0.1:{witness.port};models=full;max_inflight=1"
        )
        patient = {"timeout_connect": PATIENCE, "queue_timeout": PATIENCE}
        engines: dict[str, Seen] = {}
        others: dict[str, Seen] = {}
        async with proxied(upstreams, **patient) as proxy:
            inflight = _inflight(proxy)
            for phase in PHASES:
                engines[phase.name] = await _rounds(phase, witness, proxy.port, proxy)
            engines["while the engine takes no connection"] = await _polled(
                proxy, post("deaf"), lambda: _connecting(deaf)
            )
            others["while its body is read"] = await _polled(
                proxy, post("open", missing=1), inflight
            )
            others["in the queue for a server"] = await _polled(proxy, post("full"), inflight)
            troubles = proxy.troubles()
        async with proxied(upstreams, max_inflight=1, **patient) as proxy:
            others["in the queue for a place"] = await _polled(
                proxy, post("open"), _inflight(proxy)
            )
            troubles += proxy.troubles()
    found: list[Finding] = []
    for where, seen in engines.items():
        found += _closed(where, seen, bare)
    for where, seen in others.items():
        found += _over(where, seen.since_signal)
    lag = max(seen.lag for seen in (*engines.values(), *others.values()))
    return [
        *found,
        Finding(
            what="loop lag by the metric while they leave, upper bound of its bucket",
            measured=lag,
            unit="ms",
        ),
        *_alone(bare),
        Finding(what="crashes in the log", measured=troubles, unit="", limit=0),
    ]


def _closed(where: str, seen: Seen, bare: Seen) -> list[Finding]:
    """What was seen of requests that an engine worked for."""
    if not seen.since_leaving:  # nobody can tell which connection was whose
        return _timed(f"from the signal on, {where}", seen.since_signal, bare.since_signal)
    return [
        *_timed(where, seen.since_leaving, bare.since_leaving),
        *_told(f"from the kill on, {where}", seen.since_signal),
    ]


def _timed(where: str, times: list[float], bare: list[float]) -> list[Finding]:
    return [
        Finding(
            what=f"{name} engine connections closed, {where}",
            measured=quantile(times, share),
            unit="ms",
            limit=limit,
            doubt=_doubt(quantile(bare, share), limit),
        )
        for name, share, limit in (("half of the", 0.5, HALF), ("99 of 100", 0.99, NEARLY_ALL))
    ]


def _told(where: str, times: list[float]) -> list[Finding]:
    return [
        Finding(
            what=f"{name} engine connections closed, {where}",
            measured=quantile(times, share),
            unit="ms",
        )
        for name, share in (("half of the", 0.5), ("99 of 100", 0.99))
    ]


def _alone(bare: Seen) -> list[Finding]:
    """What was seen behind a relay that does nothing else."""
    return [
        *_told("by a relay that does nothing else", bare.since_leaving),
        *_told("by the same from the kill on", bare.since_signal),
    ]


def _doubt(control: float, limit: float) -> str:
    return f"a relay that does nothing else took {control:.0f} ms" if control > limit else ""


def _over(where: str, times: list[float]) -> list[Finding]:
    """What was seen of requests that no engine worked for: until they are over, and logged."""
    half, nearly_all = quantile(times, 0.5), quantile(times, 0.99)
    return [
        Finding(what=f"half of the requests over, {where}", measured=half, unit="ms"),
        Finding(
            what=f"99 of 100 requests over, {where}",
            measured=nearly_all,
            unit="ms",
            limit=NEARLY_ALL,
        ),
    ]


# Rounds of which the engine is the witness


async def _rounds(phase: Phase, witness: Witness, port: int, proxy: Proxy | None = None) -> Seen:
    """Return how long each engine connection was still open."""
    seen = Seen([])
    lags = [0.0]
    for way in WAYS * ROUNDS:
        witness.begin(phase.silence)
        async with _crowd(port, phase.request) as clients:
            await _until(lambda: witness.asked == MANY)
            await asyncio.sleep(SETTLE)
            before = await proxy.lag() if proxy is not None else None
            at = time.monotonic()
            clients.send_signal(way)
            await _until(lambda: len(witness.closed_at) == MANY)
            if way is signal.SIGKILL:
                times = [(closed - at) * 1000 for closed in witness.closed_at.values()]
                seen.since_signal.extend(times)
            else:
                assert clients.stdout is not None
                left_at = [float(each) for each in (await clients.stdout.readline()).split()]
                for number, left in enumerate(left_at):
                    closed = witness.closed_at[name_of(number)]
                    seen.since_leaving.append((closed - left) * 1000)
        await asyncio.sleep(SETTLE)
        if proxy is not None and before is not None:
            lags.append((await proxy.lag()).most_since(before) * 1000)
    return replace(seen, lag=max(lags))


async def _bare(witness: Witness) -> Seen:
    """Return the same behind a relay that does nothing else."""
    arguments = ["--upstream", str(witness.port)]
    async with listening("benchmarks.hardship.bare_relay", *arguments) as port:
        return await _rounds(PHASES[-1], witness, port)


# Rounds in which somebody has to look


async def _polled(proxy: Proxy, request: bytes, waiting: Waiting) -> Seen:
    """Return how long each request was still there, to the next look."""
    took: list[float] = []
    lags: list[float] = []
    for way in WAYS * ROUNDS:
        others = await waiting()
        async with _crowd(proxy.port, request) as clients:
            left = 0
            until = time.monotonic() + PATIENCE
            while left < MANY - FEW:
                await asyncio.sleep(SETTLE)
                left = await waiting() - others
                if time.monotonic() > until:
                    raise Collapse(f"of {MANY} requests only {left} wait")
            earlier = await proxy.lag()
            at = time.monotonic()
            clients.send_signal(way)
            while left > 0:
                before, left = left, await waiting() - others
                seen = (time.monotonic() - at) * 1000
                took += [seen] * (before - left)
                if seen > PATIENCE * 1000:
                    raise Collapse(f"{left} requests are not seen off")
                await asyncio.sleep(POLL)
        await asyncio.sleep(SETTLE)
        lags.append((await proxy.lag()).most_since(earlier) * 1000)
    return Seen(took, max(lags))


def _inflight(proxy: Proxy) -> Waiting:
    """Return who asks for the metric of the requests that run."""

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(METRICS)
        page = await reader.read()
        writer.close()
        found = _INFLIGHT.search(page)
        if found is None:
            raise Collapse(f"/metrics has no requests that run: {page[:200]!r}")
        return int(found[1])

    return ask


async def _connecting(port: int) -> int:
    return connecting(port)


@asynccontextmanager
async def _crowd(port: int, request: bytes) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the clients; all have asked."""
    crowd = [sys.executable, "-m", "benchmarks.hardship.leavers", "--port", str(port)]
    crowd += ["--count", str(MANY), "--request", request.hex()]
    async with running(crowd) as clients:
        assert clients.stdout is not None
        if not await asyncio.wait_for(clients.stdout.readline(), PATIENCE):
            raise Collapse("the clients could not begin")
        yield clients


async def _until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if reached():
            return
        await asyncio.sleep(POLL)
    raise Collapse("the engine did not see what it should")
