"""A client that leaves takes its work with it, in every phase."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from llmproxy.forward import Forward
from llmproxy.metrics import Metrics
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Clocks, Upstream
from llmproxy.routing.rotation import Rotation
from llmproxy.stack import Frame, build
from llmproxy.stalls import Stalls
from llmproxy.transport.connect import transport_for
from llmproxy.transport.limits import PoolLimits
from tests.support.calls import eventually
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.registries import registry_of
from tests.support.rig import KeptLog, proxied, sample, served_here
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, ScriptedServer, json_answer, scripted

STREAM = request_bytes(body=b'{"stream":true}')
WHOLE = request_bytes(body=b'{"stream":false}')

Leave = Callable[[RawClient], None]


def fin(client: RawClient) -> None:
    client.close()


def rst(client: RawClient) -> None:
    client.reset()


def half_close(client: RawClient) -> None:
    """nginx and uvicorn take it for leaving too."""
    client.half_close()


LEAVING = pytest.mark.parametrize("leave", [fin, rst, half_close], ids=lambda f: f.__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """How far a request has come when its client leaves."""

    script: Callable[[Exchange], Awaitable[None]]
    reached: Callable[[RawClient, ScriptedServer], Awaitable[None]]
    committed: bool = False  # the client has been sent a status


async def request_is_there(client: RawClient, engine: ScriptedServer) -> None:
    exchange = await engine.reached()
    await eventually(lambda: bool(exchange.requests), "the engine got the request")


async def something_arrived(client: RawClient, engine: ScriptedServer) -> None:
    await client.head()
    await client.anything()


async def a_moment_later(client: RawClient, engine: ScriptedServer) -> None:
    await request_is_there(client, engine)
    await asyncio.sleep(0.02)  # the head of the answer has been read, and nothing sent


async def says_nothing(exchange: Exchange) -> None:
    await exchange.request()
    await exchange.closed()


async def sends_a_head(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    await exchange.closed()


async def sends_tokens(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    while not exchange.ended:
        exchange.chunk(CHAT.events[0])
        await asyncio.sleep(0.002)


async def falls_silent(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    exchange.chunk(CHAT.events[0])
    await exchange.closed()


async def sends_half_a_body(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    )
    await exchange.closed()


PHASES = {
    "stream_before_the_head": (STREAM, Phase(says_nothing, request_is_there)),
    "stream_before_the_first_byte": (STREAM, Phase(sends_a_head, a_moment_later)),
    "stream_between_tokens": (STREAM, Phase(sends_tokens, something_arrived, committed=True)),
    "stream_in_a_silent_gap": (STREAM, Phase(falls_silent, something_arrived, committed=True)),
    "whole_before_the_head": (WHOLE, Phase(says_nothing, request_is_there)),
    "whole_in_its_body": (WHOLE, Phase(sends_half_a_body, something_arrived, committed=True)),
}


@LEAVING
@pytest.mark.parametrize(("request_", "phase"), PHASES.values(), ids=PHASES)
async def test_the_engine_is_let_go_at_once(request_: bytes, phase: Phase, leave: Leave) -> None:
    """Its connection is closed long before any clock of ours; the log says who left."""
    async with scripted(phase.script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(request_)
            await phase.reached(client, engine)
            leave(client)
            await engine.abandoned()
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert line["status"] == 499
    assert line["code"] == "client_gone"
    assert proxy.sample("upstream_attempts_total", upstream="engine", result="cancelled") == 1
    assert engine.accepted == 1


async def test_leaving_while_the_body_comes_in_reaches_no_engine() -> None:
    """There was no request yet."""
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(STREAM[:-4])
            await asyncio.sleep(0.01)
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert line["attempts"] == 0
    assert engine.accepted == 0


async def test_leaving_during_the_handshake_ends_the_handshake() -> None:
    """A connection that is still being made is given up, not finished first."""

    async def never_shakes_hands(exchange: Exchange) -> None:
        await exchange.rest()

    async with scripted(never_shakes_hands) as engine:
        upstream = replace(engine.upstream, scheme="https")
        async with proxied(upstream, timeout_connect=60) as proxy:
            async with proxy.client() as client:
                client.send(STREAM)
                await engine.reached()
            await engine.abandoned()
            line = await proxy.log.line()

    assert line["outcome"] == "client_gone"


@asynccontextmanager
async def black_hole() -> AsyncIterator[Upstream]:
    """A host that takes no connection and refuses none: its queue is full."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        filling = []
        while True:
            sock = socket.socket()
            sock.setblocking(False)
            filling.append(sock)
            try:
                await asyncio.wait_for(loop.sock_connect(sock, address), 0.05)
            except TimeoutError:
                break
        try:
            yield Upstream("engine", "http", address[0], address[1])
        finally:
            for sock in filling:
                sock.close()


async def test_leaving_while_we_connect_ends_the_attempt() -> None:
    """A host that answers nothing does not keep a request whose client has gone."""
    async with black_hole() as upstream, proxied(upstream, timeout_connect=60) as proxy:
        async with proxy.client() as client:
            client.send(STREAM)
            await eventually(
                lambda: proxy.sample("upstream_inflight", upstream="engine") == 1,
                "the attempt began",
            )
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert line["duration_ms"] < 5000


async def test_a_host_that_takes_no_connection_is_given_up() -> None:
    """The clock of the connection is short: the caller is not kept."""
    async with black_hole() as upstream, proxied(upstream, timeout_connect=0.1) as proxy:
        answer = await proxy.ask(STREAM)

    assert answer.status == 504


async def test_leaving_the_queue_for_a_connection_leaves_no_gap() -> None:
    """Whoever waits and goes costs no place; the next in line gets the connection."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await go_on.wait()
        exchange.json({"ok": True})

    log, metrics = KeptLog(), Metrics()
    async with scripted(script) as engine:
        transport = transport_for(engine.upstream, limits=PoolLimits(connections=1))
        forward = Forward(
            rotation=Rotation(registry_of(engine.upstream, transport=transport)),
            clocks=Clocks(),
            stalls=Stalls(60),
            metrics=metrics,
            trusted_proxies=TrustedProxies(),
            mark=b"test",
        )
        app = build(Frame(metrics=metrics, access_log=log), [], forward)
        async with served_here(app, lifespan="off") as port, raw_client(port=port) as first:
            first.send(WHOLE)
            await engine.reached()
            async with raw_client(port=port) as leaver, raw_client(port=port) as patient:
                leaver.send(WHOLE)
                await queued(transport.statistics, 1)
                patient.send(WHOLE)
                await queued(transport.statistics, 2)
                leaver.close()
                left = await log.line()
                waiting = transport.statistics()["waiting"]
                go_on.set()
                answers = [await first.answer(), await patient.answer()]
        statistics = transport.statistics()
        await transport.aclose()

    assert left["outcome"] == "client_gone"
    assert waiting == 1
    assert [answer.status for answer in answers] == [200, 200]
    assert statistics == {"open": 1, "idle": 1, "waiting": 0}
    assert engine.accepted == 1


async def queued(statistics: Callable[[], dict[str, int]], count: int) -> None:
    await eventually(lambda: statistics()["waiting"] == count, f"{count} were waiting")


async def test_500_who_leave_at_once_are_all_noticed() -> None:
    """Every engine connection is closed, every request written down, nothing is left over."""
    count = 500

    async with scripted(falls_silent) as engine, proxied(engine.upstream) as proxy:
        clients: list[RawClient] = []
        for _ in range(count):
            _, client = await asyncio.get_running_loop().create_connection(
                RawClient, "127.0.0.1", proxy.port
            )
            client.send(STREAM)
            clients.append(client)
        for client in clients:
            await something_arrived(client, engine)
        for client in clients:
            client.close()
        await engine.abandoned()
        await proxy.log.line(count)

    assert engine.open == 0
    # A machine that is busy elsewhere makes the loop late, and a late loop turns some away.
    assert {line["outcome"] for line in proxy.log.lines} - {"rejected"} == {"client_gone"}
    assert len(proxy.log.lines) == count


async def test_leaving_right_after_the_last_word_is_no_error() -> None:
    """Most client libraries hang up at [DONE], before the end of the body."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.whole)
        await exchange.closed()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(CHAT.request)
            await client.until(b"data: [DONE]\n\n")
        line = await proxy.log.line()
        await engine.abandoned()

    assert line["outcome"] == "completed"
    assert line["status"] == 200
    assert line["code"] is None


@pytest.mark.parametrize("leave", [fin, rst], ids=lambda f: f.__name__)
async def test_leaving_after_a_whole_answer_changes_nothing(leave: Leave) -> None:
    """The request was over; one line, one count, completed."""
    async with scripted(json_answer({"ok": True})) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(WHOLE)
            await client.answer()
            leave(client)
        answer = await proxy.ask(WHOLE)
        await proxy.log.line(2)

    assert answer.status == 200
    assert [line["outcome"] for line in proxy.log.lines] == ["completed", "completed"]
    assert engine.accepted == 1


async def test_a_request_is_counted_once_however_it_ends() -> None:
    """Completed, refused, gone: each is one in the books."""
    async with scripted(falls_silent) as engine, proxied(engine.upstream) as proxy:
        await proxy.ask(request_bytes(body=b"["))
        async with proxy.client() as client:
            client.send(STREAM)
            await something_arrived(client, engine)
        await proxy.log.line(2)
        exposition = proxy.app.metrics.render()

    counted = [
        line for line in exposition.splitlines() if line.startswith(b"llmproxy_requests_total{")
    ]
    assert len(counted) == 2
    assert all(line.endswith(b" 1.0") for line in counted)
    assert sample(exposition, "llmproxy_inflight_requests") == 0
