"""Servers come and go while requests are on their way."""

import asyncio
from dataclasses import replace

import pytest

from llmproxy.forward import Forward
from llmproxy.metrics import Metrics
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Clocks, Upstream
from llmproxy.routing import registry as module
from llmproxy.routing.registry import QUIET, Registry
from llmproxy.routing.rotation import Rotation
from llmproxy.routing.server import Server
from llmproxy.stack import Frame, build
from llmproxy.stalls import Stalls
from llmproxy.transport.connect import transport_for
from tests.support.calls import ask, eventually, reads
from tests.support.client import raw_client, request_bytes
from tests.support.clock import pass_time
from tests.support.registries import CONFIGURED, registry_of
from tests.support.rig import served_here
from tests.support.upstream import Exchange, scripted

A, B, C = (Upstream(name, "http", "127.0.0.1", 1) for name in "abc")


def names(registry: Registry) -> list[str]:
    return [server.name for server in registry.servers]


async def test_each_source_speaks_for_its_own_servers() -> None:
    """What one says is no news of the other."""
    registry = registry_of(A)
    registry.replace("dns", [B, C])
    registry.replace(CONFIGURED, [])
    assert names(registry) == ["b", "c"]

    registry.replace("dns", [C])
    assert names(registry) == ["c"]
    await registry.aclose()


async def test_what_is_said_again_is_the_same_server() -> None:
    """What is known of it is kept, in whatever order it is said."""
    registry = registry_of(A, B)
    first, second = registry.servers
    registry.replace(CONFIGURED, [B, C, A])

    assert registry.servers[0] is second
    assert registry.servers[2] is first
    await registry.aclose()


async def test_nothing_new_is_no_change() -> None:
    """Those who listen are told only when they have something to do."""
    registry, told = registry_of(A, B), []
    registry.on_change.append(lambda: told.append(names(registry)))
    before = registry.servers
    registry.replace(CONFIGURED, [A, B])
    assert registry.servers is before
    registry.replace(CONFIGURED, [A])
    registry.replace(CONFIGURED, [A])

    assert told == [["a"]]
    await registry.aclose()


async def test_no_two_servers_have_the_same_name() -> None:
    """Metrics and drains go by it; whoever was first keeps it, and the other its own too."""
    registry = registry_of(A)
    registry.replace("dns", [replace(B, name="a"), replace(C, name="a", port=2)])
    assert names(registry) == ["a", "a-2", "a-3"]

    registry.replace(CONFIGURED, [])
    registry.replace("dns", [replace(C, name="a", port=2)])
    assert names(registry) == ["a-3"]
    assert registry.servers[0].upstream.port == 2
    await registry.aclose()


async def test_a_server_that_has_changed_is_another_one() -> None:
    """Under the same name: the one that has left holds it no more."""
    registry = registry_of(A)
    before = registry.find("a")
    registry.replace(CONFIGURED, [replace(A, weight=5)])
    after = registry.find("a")

    assert after is not None and after is not before
    assert (after.name, after.upstream.weight) == ("a", 5)
    assert registry.leaving == 1
    await registry.aclose()


async def test_a_server_that_comes_back_while_it_leaves_is_the_same_one() -> None:
    """A name that flaps costs no connections and no memory."""
    registry = registry_of(A)
    before = registry.find("a")
    for _ in range(50):
        registry.replace(CONFIGURED, [])
        registry.replace(CONFIGURED, [A])

    assert registry.find("a") is before
    assert registry.leaving == 0
    await registry.aclose()


async def test_one_that_cannot_be_made_changes_nothing() -> None:
    """A certificate that is missing must not cost the servers that there are."""

    def make(upstream: Upstream) -> Server:
        if upstream.name == "b":
            raise OSError("no such file")
        return Server(upstream, transport_for(upstream))

    registry = Registry(make)
    registry.replace(CONFIGURED, [A])
    before = registry.servers
    with pytest.raises(OSError, match="no such file"):
        registry.replace(CONFIGURED, [C, B])

    assert registry.servers == before
    assert registry.leaving == 0
    await registry.aclose()


async def test_a_source_names_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in DNS may resolve to anything."""
    monkeypatch.setattr(module, "MOST_SERVERS", 3)
    registry = registry_of(*(replace(A, name=f"s{number}") for number in range(10)))

    assert names(registry) == ["s0", "s1", "s2"]
    await registry.aclose()


async def test_a_drained_server_gets_no_new_requests() -> None:
    """Until it is used again; that of another name is not concerned."""
    registry = registry_of(A, B)
    assert registry.drain("a", True)
    assert [server.draining for server in registry.servers] == [True, False]
    assert registry.drain("a", False)
    assert not any(server.draining for server in registry.servers)

    assert not registry.drain("nobody", True)
    assert registry.drained == frozenset()
    await registry.aclose()


async def test_a_drain_outlives_a_change_of_the_server() -> None:
    """An operator means the name, not the weight it had."""
    registry = registry_of(A)
    registry.drain("a", True)
    registry.replace(CONFIGURED, [replace(A, weight=5)])
    assert registry.servers[0].draining

    registry.replace(CONFIGURED, [])
    registry.drain_only([])
    registry.replace(CONFIGURED, [replace(A, weight=5)])
    assert not registry.servers[0].draining
    await registry.aclose()


async def test_paths_of_later_servers_are_learned() -> None:
    """And stay: what was guarded must not become open when its server leaves."""
    registry, paths = registry_of(A), Paths()
    registry.on_change.append(lambda: paths.learn(server.upstream for server in registry.servers))
    assert paths.find(b"/api/tags") is None
    later = replace(B, native=frozenset({"/api/tags"}), management=("/v1/load_lora_adapter",))
    registry.replace("file", [later])
    registry.replace("file", [])

    native, guarded = paths.find(b"/api/tags"), paths.find(b"/v1/load_lora_adapter")
    assert native is not None and native.native
    assert guarded is not None and guarded.management
    await registry.aclose()


@pytest.mark.clock
async def test_a_leaving_server_is_closed_once_its_last_stream_is_over() -> None:
    """And not a moment before, however long that takes."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"one")
        await go_on.wait()
        exchange.chunk(b"two")
        exchange.end()

    async with scripted(script) as engine:
        registry, gone = registry_of(engine.upstream), []
        registry.on_gone.append(lambda server: gone.append(server.name))
        (server,) = registry.servers
        call = await ask(server.transport)
        registry.replace(CONFIGURED, [])
        for _ in range(10):
            await pass_time(QUIET)
        assert (registry.servers, registry.leaving, gone) == ((), 1, [])

        go_on.set()
        assert b"".join(await reads(call)) == b"onetwo"
        call.close()
        await pass_time(QUIET)
        await eventually(lambda: registry.leaving == 0, "the server has left")
        assert gone == ["engine"]
        await engine.abandoned()
    await registry.aclose()


@pytest.mark.clock
async def test_a_request_that_does_not_end_holds_no_server_for_ever() -> None:
    """After an hour its connection is closed."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await asyncio.Event().wait()

    async with scripted(script) as engine:
        registry = registry_of(engine.upstream)
        call = await ask(registry.servers[0].transport)
        registry.replace(CONFIGURED, [])
        await pass_time(module.LONGEST_LEAVE)
        await engine.abandoned()
        call.close()
        await pass_time(QUIET)
        await pass_time(QUIET)
        assert registry.leaving == 0
    await registry.aclose()


async def test_a_stream_does_not_notice_that_its_server_has_left() -> None:
    """Through the whole proxy: the client gets the rest; who comes later gets 503."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"data: one\n\n")
        await go_on.wait()
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    async with scripted(script) as engine:
        registry = registry_of(engine.upstream)
        forward = Forward(
            rotation=Rotation(registry),
            clocks=Clocks(),
            stalls=Stalls(60),
            metrics=Metrics(),
            trusted_proxies=TrustedProxies(),
            mark=b"test",
        )
        app = build(Frame(), [], forward)
        async with served_here(app, lifespan="off") as port, raw_client(port=port) as client:
            client.send(request_bytes(body=b'{"stream":true}'))
            await client.head()
            registry.replace(CONFIGURED, [])
            go_on.set()
            stream = [chunk async for chunk in client.chunks()]
            async with raw_client(port=port) as later:
                later.send(request_bytes())
                refused = await later.answer()
        await registry.aclose()

    assert b"".join(stream) == b"data: one\n\ndata: [DONE]\n\n"
    assert refused.status == 503
    assert engine.accepted == 1
