"""When engines are asked for their load, and what becomes of what they say."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from llmproxy.routing.engine_load import FRESH, EngineLoad
from llmproxy.routing.load_watch import (
    HEADER_AFTER,
    IDLE_PERIOD,
    LARGEST_PAGE,
    TICK,
    WITHIN,
    LoadWatch,
    heard,
    wants_header,
)
from llmproxy.routing.policies import burden_of, least_load
from llmproxy.routing.server import Server
from llmproxy.transport.connect import transport_for
from tests.support.clock import pass_time
from tests.support.upstream import Exchange, Script, ScriptedServer, scripted
from tests.support.wire import patience

pytestmark = pytest.mark.clock


def page(running: int, waiting: int = 0) -> bytes:
    return b"vllm:num_requests_running %d\nvllm:num_requests_waiting %d\n" % (running, waiting)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def saying(body: bytes, status: bytes = b"200 OK") -> Script:
    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        assert request.target == b"/team/metrics"
        exchange.send(answer(body, status))

    return script


@dataclass
class Engines:
    """Servers that are watched, and what they run on."""

    servers: tuple[Server, ...]
    engines: tuple[ScriptedServer, ...]
    watch: LoadWatch

    @property
    def asked(self) -> list[int]:
        """How often each was."""
        return [len(engine.requests) for engine in self.engines]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with patience("the watch did what it should"):
            while not condition():  # noqa: ASYNC110  # the watch announces nothing
                await asyncio.sleep(0.001)

    async def spend(self, seconds: float) -> None:
        """Let time pass in steps that nobody oversleeps, and every answer arrive."""
        for _ in range(round(seconds / TICK)):
            await pass_time(TICK)
            await self.until(lambda: not any(look.asking for look in self.watch._looks.values()))


@asynccontextmanager
async def watched(*scripts: Script, preset: str = "vllm") -> AsyncIterator[Engines]:
    """Watch servers that answer like this."""
    now = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group, scripted_all(scripts) as engines:
        servers = tuple(
            Server(upstream, transport_for(upstream), now=now)
            for upstream in (
                replace(
                    engine.upstream,
                    name=f"{preset}-{number}",
                    preset=preset,
                    root="/team",
                    metrics="/metrics",
                )
                for number, engine in enumerate(engines)
            )
        )
        found = Engines(servers, engines, LoadWatch(_Fixed(servers), now=now, draw=lambda: 0.5))
        running = group.create_task(found.watch.run())
        try:
            yield found
        finally:
            running.cancel()
            for server in servers:
                await server.transport.aclose()


@dataclass
class _Fixed:
    """As many servers as there were at the beginning, until a test says otherwise."""

    servers: tuple[Server, ...]


@asynccontextmanager
async def scripted_all(scripts: tuple[Script, ...]) -> AsyncIterator[tuple[ScriptedServer, ...]]:
    if not scripts:
        yield ()
        return
    async with scripted(scripts[0]) as first, scripted_all(scripts[1:]) as others:
        yield (first, *others)


async def test_a_server_knows_what_its_engine_says() -> None:
    """Below its root, as text."""
    async with watched(saying(page(12, 3)), saying(page(1))) as engines:
        first, second = engines.servers
        await engines.until(lambda: None not in (first.load, second.load))
        asked = engines.engines[0].requests[0]

        assert (first.waiting, first.others, second.others) == (3, 15, 1)
        assert asked.header(b"accept") == b"text/plain, application/json;q=0.5"


async def test_one_server_alone_is_not_asked() -> None:
    """There is no choice that it could help with; and it begins once there is one."""
    async with watched(saying(page(1)), saying(page(1))) as engines:
        registry = engines.watch._registry
        assert isinstance(registry, _Fixed)
        registry.servers = engines.servers[:1]
        engines.servers[0].inflight = 1
        await engines.spend(3)
        alone = engines.asked

        registry.servers = engines.servers
        await engines.spend(1)

        assert alone == [0, 0]
        assert engines.asked == [1, 1]


async def test_a_server_that_is_gone_is_forgotten() -> None:
    """What comes in its place is asked as if there had been nobody."""
    async with watched(saying(page(1)), saying(page(1)), saying(page(1))) as engines:
        registry = engines.watch._registry
        assert isinstance(registry, _Fixed)
        await engines.spend(1)
        first, second, third = engines.servers
        new = Server(first.upstream, first.transport, now=first._now)
        registry.servers = (new, second)
        await engines.spend(1)

        assert set(engines.watch._looks) == {new, second}
        assert engines.asked == [2, 1, 1]
        assert new.load is not None
        assert third.load is not None


async def test_all_are_asked_each_second_while_there_is_work() -> None:
    """Also the one that has none: it may be the next choice. And seldom while there is none."""
    async with watched(saying(page(1)), saying(page(1))) as engines:
        await engines.spend(IDLE_PERIOD - 1)
        idle = engines.asked
        engines.servers[0].inflight = 1
        await engines.spend(5)

        assert idle == [1, 1]
        assert all(5 <= asked <= 7 for asked in engines.asked)


async def test_what_is_not_said_anew_is_forgotten() -> None:
    """What is left is the count of our own."""
    async with watched(saying(page(40, 9)), saying(page(1))) as engines:
        first = engines.servers[0]
        await engines.until(lambda: first.load is not None)
        known = (first.waiting, first.others)
        await engines.spend(FRESH + 1)

        assert known == (9, 49)
        assert (first.waiting, first.others, first.kv_use) == (0, 0, 0.0)


async def test_our_own_requests_are_not_somebody_elses() -> None:
    """An engine counts ours among its own, and some of them have ended while it was telling."""
    telling, told = asyncio.Event(), asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await exchange.request()
        telling.set()
        await told.wait()
        exchange.send(answer(page(12, 3)))

    async with watched(slowly, saying(page(1))) as engines:
        first = engines.servers[0]
        first.inflight = 10
        await telling.wait()
        first.inflight = 4
        told.set()
        await engines.until(lambda: first.load is not None)

        assert first.load is not None
        assert first.load.running == 12
        assert first.others == 5


@pytest.mark.parametrize("preset", ["llamacpp", "http"])
async def test_an_idle_engine_is_left_to_sleep(preset: str) -> None:
    """Asking llama.cpp keeps its model in memory, and a plain URL may be one."""
    silent = saying(b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n")
    async with watched(silent, silent, preset=preset) as engines:
        await engines.spend(IDLE_PERIOD * 2)
        idle = engines.asked
        engines.servers[1].inflight = 1
        await engines.spend(3)
        at_work = engines.asked
        engines.servers[1].inflight = 0
        await engines.spend(IDLE_PERIOD * 2)

        assert idle == [0, 0]
        assert at_work[0] == 0 < at_work[1]
        assert engines.asked == at_work


async def test_a_plain_url_that_turns_out_to_be_vllm_is_asked_when_idle() -> None:
    """Its page has said what it is."""
    async with watched(saying(page(1)), saying(page(1)), preset="http") as engines:
        first = engines.servers[0]
        first.inflight = 1
        await engines.until(lambda: first.load is not None)
        first.inflight = 0
        await engines.spend(IDLE_PERIOD * 2)

        assert engines.asked[0] >= 3
        assert engines.asked[1] == 0


@pytest.mark.parametrize("status", [b"404 Not Found", b"501 Not Implemented", b"200 OK"])
async def test_who_has_no_page_is_soon_left_alone(
    status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log says so, and no more."""
    caplog.set_level(logging.INFO, "llmproxy")
    async with watched(saying(b"{}", status), saying(page(1))) as engines:
        engines.servers[1].inflight = 1
        await engines.spend(100)

        assert 4 <= engines.asked[0] <= 5
        assert engines.asked[1] > 80
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            "vllm-0 does not tell its load at /metrics"
        ]


async def test_who_does_not_answer_is_asked_again_soon() -> None:
    """It may only have been busy; nothing waits for it for longer than a second."""

    async def silent(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.closed()

    async with watched(silent, saying(page(1))) as engines:
        engines.servers[1].inflight = 1
        await engines.engines[0].reached(1)
        looks = engines.watch._looks
        for misses in (1, 2, 3):
            await engines.engines[0].reached(misses)
            await pass_time(WITHIN + 0.01)
            await engines.until(lambda: looks[engines.servers[0]].asking is None)
            assert looks[engines.servers[0]].misses == misses
            await pass_time(looks[engines.servers[0]].rest + TICK)

        assert engines.servers[0].load is None
        assert looks[engines.servers[0]].rest <= 10


async def test_a_page_that_comes_drop_by_drop_is_not_waited_for() -> None:
    """The second is for all of it."""

    async def dripping(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(b"#")
            await asyncio.sleep(0.4)

    async with watched(dripping, saying(page(1))) as engines:
        await engines.engines[0].reached()
        look = engines.watch._looks[engines.servers[0]]
        for _ in range(3):
            await pass_time(0.4)
            await asyncio.sleep(0.005)
        await engines.until(lambda: look.misses == 1)

        assert engines.servers[0].load is None


async def test_a_page_without_end_is_not_read() -> None:
    """Memory is bounded, whatever an engine says."""

    async def endless(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.transport.is_closing():
            exchange.chunk(b"x" * 65536)
            await exchange.sent()

    async with watched(endless, saying(page(1))) as engines:
        first = engines.engines[0]
        await engines.until(lambda: any(look.misses for look in engines.watch._looks.values()))

        assert engines.servers[0].load is None
        assert first.exchanges[0].sent_bytes < 16 * LARGEST_PAGE


async def test_a_page_that_takes_long_is_asked_for_less_often() -> None:
    """vLLM writes it in the process that also answers requests."""

    async def slow(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(0.1)
        exchange.send(answer(page(1)))

    async with watched(slow, saying(page(1))) as engines:
        engines.servers[1].inflight = 1
        first = engines.servers[0]
        await engines.until(lambda: first.load is not None)

        assert 2.0 <= engines.watch._looks[first].rest <= 3.0


async def test_a_server_that_is_down_or_drained_is_not_asked() -> None:
    """The probes find out when it is back, and then it is asked at once."""
    async with watched(saying(b"", b"404 Not Found"), saying(page(1))) as engines:
        first, second = engines.servers
        first.inflight = 1
        await engines.spend(100)
        before = engines.asked
        first.up, second.draining = False, True
        await engines.spend(3)
        meanwhile = engines.asked
        first.up, second.draining = True, False
        await engines.spend(0.5)

        assert meanwhile == before
        assert engines.asked == [before[0] + 1, before[1] + 1]


async def test_a_bug_is_not_hidden() -> None:
    """What no upstream can cause ends the watch, and whoever runs it hears of it."""

    class Broken:
        @property
        def servers(self) -> tuple[Server, ...]:
            raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await LoadWatch(Broken()).run()


# Two processes before the same engines


def seen_from(inflight: int, running: int, waiting: int, upstream: ScriptedServer) -> Server:
    """Return an engine as one process knows it that has asked it just now."""
    server = Server(upstream.upstream, transport_for(upstream.upstream))
    server.inflight = inflight
    server.load = EngineLoad(
        running, waiting, seen_at=server._now(), others=max(0, running + waiting - inflight)
    )
    return server


@pytest.mark.parametrize("ours", [0, 1, 20, 43, 44])
async def test_an_engine_is_as_busy_whoever_looks_at_it(ours: int) -> None:
    """A process that sent nothing sees the same burden as the one that sent everything."""
    async with scripted(saying(b"")) as engine:
        alone = Server(engine.upstream, transport_for(engine.upstream))
        alone.inflight = 44
        alone.load = EngineLoad(40, 4, seen_at=alone._now())

        assert burden_of(seen_from(ours, 40, 4, engine)) == burden_of(alone)


async def test_a_process_that_sent_nothing_finds_the_idle_engine() -> None:
    """By its own count alone both would be the same."""
    async with scripted(saying(b"")) as one, scripted(saying(b"")) as other:
        full, idle = seen_from(0, 40, 0, one), seen_from(0, 0, 0, other)

        assert {least_load([full, idle]) for _ in range(50)} == {idle}


async def test_a_burst_does_not_follow_an_old_figure() -> None:
    """Between two looks our own requests count at once, also beside many others."""
    async with scripted(saying(b"")) as one, scripted(saying(b"")) as other:
        servers = [seen_from(0, 40, 0, one), seen_from(0, 30, 0, other)]
        for _ in range(30):
            least_load(servers).inflight += 1

        assert [server.inflight for server in servers] == [10, 20]


async def test_a_header_counts_when_the_page_is_out_of_reach() -> None:
    """vLLM is asked for it then, nobody else ever, and a flock of them is read once."""
    async with scripted(saying(b"")) as engine:
        now = [100.0]
        upstream = replace(engine.upstream, preset="vllm")
        server = Server(upstream, transport_for(upstream), now=lambda: now[0])
        other = Server(engine.upstream, server.transport, now=lambda: now[0])
        wanted = wants_header(server, now[0])
        heard(server, b"TEXT named_metrics.num_requests_waiting=2.0", now[0])
        heard(server, b"TEXT named_metrics.num_requests_waiting=9.0", now[0] + 0.1)

        assert wanted
        assert server.waiting == 2
        assert not wants_header(server, now[0] + HEADER_AFTER)
        assert wants_header(server, now[0] + HEADER_AFTER + 0.1)
        assert not other.tells_load
        heard(server, b"nonsense", now[0] + 1)
        assert server.waiting == 2
