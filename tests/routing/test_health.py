"""How the servers are: on a schedule, when somebody asks, when a model was not found."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from llmproxy.metrics import Metrics
from llmproxy.records import Upstream
from llmproxy.routing import health as module
from llmproxy.routing.breaker import FIRST_REST, REFUSED_IN_A_ROW, Breaker
from llmproxy.routing.health import ILL_EVERY, LIST_EVERY, WELL_EVERY, Health
from llmproxy.routing.registry import QUIET, Registry
from llmproxy.routing.server import Server
from tests.support.calls import eventually
from tests.support.clock import pass_time
from tests.support.ports import free_port
from tests.support.registries import CONFIGURED, registry_of
from tests.support.rig import sample
from tests.support.upstream import Exchange, scripted

LATER = 1.0 + module.JITTER


@dataclass
class Engine:
    """What a server says when it is asked; a test changes it."""

    health: bytes = b"200 OK"
    status: bytes = b"200 OK"  # of the list
    models: list[dict[str, object]] = field(default_factory=lambda: [{"id": "llama"}])
    silent: bool = False
    asked: list[bytes] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, exchange: Exchange) -> None:
        target = (await exchange.request()).target
        self.asked.append(target)
        if self.silent:
            await self.let_go.wait()
        if target == b"/health":
            exchange.json({}, self.health)
        else:
            exchange.json({"object": "list", "data": self.models}, self.status)

    def lists(self) -> int:
        return self.asked.count(b"/v1/models")


@dataclass(frozen=True)
class Ward:
    """Engines and who looks after them."""

    engines: list[Engine]
    upstreams: list[Upstream]
    registry: Registry
    health: Health
    metrics: Metrics

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.registry.servers

    def told(self, name: str, upstream: str) -> float:
        return sample(self.metrics.render(), f"llmproxy_{name}", upstream=upstream)


@asynccontextmanager
async def ward(*engines: Engine, watched: bool = False) -> AsyncIterator[Ward]:
    """Serve engines and look after them."""
    async with _served(list(engines)) as upstreams:
        registry, metrics = registry_of(*upstreams), Metrics()
        health = Health(registry, metrics)
        watching = asyncio.create_task(health.watch()) if watched else None
        try:
            yield Ward(list(engines), upstreams, registry, health, metrics)
        finally:
            if watching is not None:
                watching.cancel()
            for engine in engines:
                engine.let_go.set()
            health.close()
            await registry.aclose()


@asynccontextmanager
async def _served(engines: list[Engine]) -> AsyncIterator[list[Upstream]]:
    if not engines:
        yield []
        return
    async with scripted(engines[0].script) as server, _served(engines[1:]) as others:
        name = f"engine-{len(engines)}"
        yield [replace(server.upstream, name=name), *others]


async def until_asked(engine: Engine, times: int) -> None:
    await eventually(lambda: len(engine.asked) >= times, f"it was asked {times} times")


async def until_quiet(one: Ward) -> None:
    """Wait until every probe has its answer: only then is the next one due some time."""
    await eventually(lambda: not any(each.busy for each in one.servers), "nobody is asked")


async def test_a_server_counts_as_up_until_it_was_asked() -> None:
    """A start must not begin with refusals."""
    async with ward(Engine()) as one:
        assert one.servers[0].up
        assert one.health.ready
        assert one.servers[0].documents is None


@pytest.mark.clock
async def test_a_server_goes_down_and_comes_back() -> None:
    """It is asked more often while it is down, begins slowly, and its breaker begins anew."""
    engine = Engine()
    async with ward(engine, watched=True) as one:
        (server,) = one.servers
        await eventually(lambda: server.detail == "ok", "it was asked at once")
        await until_quiet(one)
        weight = server.weight

        engine.health = b"503 Loading"
        await pass_time(WELL_EVERY * LATER)
        await eventually(lambda: not server.up, "it was found to be down")
        await until_quiet(one)
        for _ in range(5):
            server.breaker.failed(probe=False, refused=True)
        assert (server.detail, server.breaker.state) == ("answers with status 503", "open")
        assert not one.health.ready
        assert one.told("upstream_up", "engine-1") == 0

        engine.health = b"200 OK"
        since = asyncio.get_running_loop().time()
        await pass_time(ILL_EVERY * LATER)
        await eventually(lambda: server.up, "it was found to be well")
        assert asyncio.get_running_loop().time() - since < WELL_EVERY / 2
        assert server.breaker.state == "closed"
        assert server.weight < weight / 2
        assert one.told("upstream_up", "engine-1") == 1


async def test_a_server_that_is_not_there_is_down_at_once() -> None:
    """Nobody is as busy as that."""
    registry = registry_of(Upstream("dead", "http", "127.0.0.1", free_port()))
    health = Health(registry, Metrics())
    watching = asyncio.create_task(health.watch())
    await eventually(lambda: not registry.servers[0].up, "it was found to be down")
    assert registry.servers[0].detail == "connection refused"
    watching.cancel()
    health.close()
    await registry.aclose()


async def test_going_down_and_up_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the cause and without the address."""
    engine = Engine(health=b"500 Broken")
    async with ward(engine) as one:
        with caplog.at_level(logging.INFO, "llmproxy"):
            await one.health.look()
            engine.health = b"200 OK"
            await one.health.refresh()  # asks nobody who is down
            await _looked_again(one)

    assert [record.getMessage() for record in caplog.records] == [
        "engine-1 is down: answers with status 500",
        "engine-1 is up again",
    ]
    assert "127.0.0.1" not in caplog.text


async def _looked_again(one: Ward) -> None:
    """Ask as if the last answer were old."""
    for view in one.health._views.values():
        view.at = module.NEVER
    await one.health.look()


@pytest.mark.clock
async def test_silence_gets_a_second_chance() -> None:
    """A busy engine is silent too; one that is silent twice is down."""
    engine = Engine(silent=True)
    async with ward(engine, watched=True) as one:
        (server,) = one.servers
        await until_asked(engine, 1)
        await _run_out_of_time()
        await eventually(lambda: server.detail != "not asked yet", "the first probe has ended")
        assert server.up

        await until_quiet(one)
        await pass_time(ILL_EVERY * LATER)
        await until_asked(engine, 2)
        await _run_out_of_time()
        await eventually(lambda: not server.up, "it was found to be down")
        assert server.detail == "no answer within 3 s"


async def _run_out_of_time() -> None:
    for _ in range(12):
        await pass_time(module.WITHIN / 10)


async def test_a_late_loop_makes_no_server_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that waits in the socket while we are stuck has come in time."""
    monkeypatch.setattr(module, "WITHIN", 0.3)

    async def stuck(exchange: Exchange) -> None:
        target = (await exchange.request()).target
        time.sleep(0.5)  # the loop of the proxy, which is also ours
        exchange.json({"data": [{"id": "llama"}]} if target != b"/health" else {})

    async with scripted(stuck) as server:
        registry = registry_of(server.upstream)
        health = Health(registry, Metrics())
        found = await health.look()
        health.close()
        await registry.aclose()

    assert found["engine"].ok, found["engine"].detail


@pytest.mark.clock
async def test_watching_is_cheap() -> None:
    """Never a completion; the models once a minute; nobody twice at the same time."""
    engine = Engine()
    async with ward(engine, watched=True) as one:
        await until_asked(engine, 2)
        await until_quiet(one)
        for _ in range(3):
            before = len(engine.asked)
            await pass_time(WELL_EVERY * LATER)
            await until_asked(engine, before + 1)
            await until_quiet(one)
            await pass_time(2 * module.FRESH)
            await one.health.look()  # brings nothing new while somebody watches
        assert engine.asked == [b"/health", b"/v1/models", *[b"/health"] * 3]

        await pass_time(LIST_EVERY)
        await eventually(lambda: engine.lists() == 2, "its models were asked for again")


@pytest.mark.clock
async def test_sglang_is_not_made_to_generate() -> None:
    """Its /health does, when it has nothing else to do."""
    engine = Engine(models=[{"id": "qwen", "owned_by": "sglang"}])
    async with ward(engine, watched=True) as one:
        await until_asked(engine, 2)
        for times in (3, 4):
            await until_quiet(one)
            await pass_time(WELL_EVERY * LATER)
            await until_asked(engine, times)

    assert engine.asked == [b"/health", b"/v1/models", b"/v1/models", b"/v1/models"]


async def test_a_new_server_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However seldom we look who is due."""
    monkeypatch.setattr(module, "TICK", 1000.0)
    first, second = Engine(), Engine(models=[{"id": "phi"}])
    async with ward(first, second, watched=True) as one:
        one.registry.replace(CONFIGURED, one.upstreams[:1])
        await until_asked(first, 2)
        asked = len(second.asked)
        one.registry.replace(CONFIGURED, one.upstreams)
        await until_asked(second, asked + 2)
        server = one.registry.find("engine-1")
        assert server is not None
        await eventually(lambda: server.models == ("phi",), "its models are known")


@pytest.mark.clock
async def test_models_outlive_a_list_that_fails() -> None:
    """What was told is kept until something else is: also while the server is down."""
    engine = Engine()
    async with ward(engine, watched=True) as one:
        (server,) = one.servers
        await eventually(lambda: server.documents is not None, "its models are known")
        await until_quiet(one)

        engine.status = b"500 Broken"
        await pass_time(LIST_EVERY)
        await eventually(lambda: engine.lists() == 2, "its models were asked for again")
        await until_quiet(one)
        assert server.up and server.models == ("llama",)

        engine.health = b"500 Broken"
        await pass_time(WELL_EVERY * LATER)
        await eventually(lambda: not server.up, "it was found to be down")
        assert server.models == ("llama",)


async def test_a_search_for_a_model_is_one_search() -> None:
    """A hundred callers at once cost each server one list; those who are down, none."""
    well, ill = Engine(), Engine(health=b"500 Broken")
    async with ward(well, ill) as both:
        await both.health.look()
        lists, asked = well.lists(), len(ill.asked)
        well.models.append({"id": "phi"})
        await asyncio.gather(*(both.health.refresh() for _ in range(100)))

        assert both.servers[0].models == ("llama", "phi")
        assert well.lists() == lists + 1
        assert len(ill.asked) == asked


@pytest.mark.clock
async def test_a_model_that_nobody_has_is_not_searched_for_again_and_again() -> None:
    """Callers who make names up cost the servers next to nothing."""
    engine = Engine()
    async with ward(engine) as one:
        for _ in range(100):
            await one.health.refresh()
        assert engine.lists() == 1

        await pass_time(module.REFRESH_EVERY)
        await one.health.refresh()
        assert engine.lists() == 2


async def test_a_searcher_who_leaves_takes_nothing_from_the_others() -> None:
    """The search is everybody's."""
    engine = Engine(silent=True)
    async with ward(engine) as one:
        searching = [asyncio.create_task(one.health.refresh()) for _ in range(2)]
        await until_asked(engine, 1)
        searching[0].cancel()
        await asyncio.wait(searching[:1])
        engine.let_go.set()
        await searching[1]

        assert searching[0].cancelled()
        assert one.servers[0].models == ("llama",)


async def test_only_so_many_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand servers are no flood of connections."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    engines = [Engine(silent=True) for _ in range(4)]
    async with ward(*engines) as all_of_them:
        looking = asyncio.create_task(all_of_them.health.look())
        await eventually(lambda: sum(len(each.asked) for each in engines) == 2, "two were asked")
        await asyncio.sleep(0.02)
        assert sum(len(each.asked) for each in engines) == 2
        for engine in engines:
            engine.let_go.set()
        assert all(probe.ok for probe in (await looking).values())


@pytest.mark.clock
async def test_what_is_told_of_a_server_ends_when_it_has_left() -> None:
    """Its state at once, its counts after its last request: labels are bounded."""
    async with ward(Engine(), Engine(), watched=True) as both:
        await until_asked(both.engines[1], 2)
        await eventually(lambda: both.told("upstream_up", "engine-1") == 1, "it is told to be up")
        await until_quiet(both)
        both.metrics.attempt("engine-1", "ok")
        both.registry.replace(CONFIGURED, both.upstreams[:1])
        told = both.metrics.render()
        assert b'llmproxy_upstream_up{upstream="engine-1"}' not in told
        assert b'llmproxy_breaker_state{upstream="engine-1"}' not in told
        assert b'llmproxy_upstream_attempts_total{result="ok",upstream="engine-1"}' in told

        await pass_time(QUIET)
        await pass_time(QUIET)
        await eventually(lambda: both.registry.leaving == 0, "it has left")
        told = both.metrics.render()
        assert b"engine-1" not in told
        assert b'llmproxy_breaker_state{upstream="engine-2"} 0.0' in told


async def test_a_drained_server_makes_nobody_ready() -> None:
    """It may be well: it gets no requests all the same."""
    async with ward(Engine()) as one:
        await one.health.look()
        one.registry.drain("engine-1", True)

        assert not one.health.ready


async def test_a_server_that_is_kept_from_requests_makes_nobody_ready() -> None:
    """Its probe may be answered: who sends us work would get it back. Half open is enough."""
    at = 1000.0
    async with ward(Engine()) as one:
        await one.health.look()
        (server,) = one.servers
        breaker = server.breaker = Breaker(lambda: at)
        for _ in range(REFUSED_IN_A_ROW):
            breaker.failed(probe=False, refused=True)

        assert server.up
        assert not one.health.ready

        at += FIRST_REST
        assert one.health.ready
        breaker.begin()  # it is being found out, and that is not to be told every second
        assert one.health.ready
        breaker.failed(probe=True)
        assert not one.health.ready
