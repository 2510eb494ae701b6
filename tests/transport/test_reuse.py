"""Connections that are used again, for how long, and what happens when one has died."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.records import Upstream
from llmproxy.transport import Outgoing, Transport
from llmproxy.types import Receive, Scope, Send
from tests.support.calls import GET, ask, body_of, eventually, fetch, order, post, settle
from tests.support.clock import pass_time
from tests.support.server import under_uvicorn
from tests.support.upstream import Exchange, in_turn, json_answer, scripted
from tests.support.wire import RESET_ON_CLOSE, patience
from tests.transport.conftest import Connect, Resent, only_http1

ONCE = "httpx uses an HTTP/1 connection once: h11 would mix up answers"
UNHURRIED = 5.0  # seconds; here both ends share a loop, and that a machine which may be busy
OWN_CLOCK = "httpcore goes by a clock that no test can move"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
STRAY = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 7\r\n\r\nforeign"


@only_http1(ONCE)
async def test_the_connection_that_was_used_last_is_used_next(connect: Connect) -> None:
    """It is the least likely to have been closed, and the others may go."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if exchange.number == 1:
            await hold.wait()
        exchange.json(exchange.connection)

    async with scripted(script) as server:
        transport = connect(server)
        first = asyncio.create_task(fetch(transport))
        await server.reached(1)
        second = asyncio.create_task(fetch(transport))
        await server.reached(2)
        hold.set()
        await asyncio.gather(first, second)
        await settle()
        answers = [await fetch(transport) for _ in range(5)]

    assert len({body for _, body in answers}) == 1
    assert server.accepted == 2


@only_http1(OWN_CLOCK)
@pytest.mark.clock
async def test_an_idle_connection_is_let_go(connect: Connect) -> None:
    """Before the engine would close it, and whether or not anybody calls."""
    async with scripted(json_answer({})) as server:
        transport = connect(server, keepalive=4.0)
        await fetch(transport)
        await pass_time(3.5)
        kept = transport.statistics()
        await pass_time(1.0)
        await server.exchanges[0].closed()

        assert kept == {"open": 1, "idle": 1, "waiting": 0}
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


@only_http1(OWN_CLOCK)
@pytest.mark.clock
async def test_use_renews_the_patience(connect: Connect) -> None:
    """What counts is the time since the last call, not since the first."""
    async with scripted(json_answer({})) as server:
        transport = connect(server, keepalive=4.0, max_age=1000.0)
        for _ in range(10):
            await fetch(transport)
            await pass_time(3.0)

        assert server.accepted == 1
        await pass_time(1.5)
        assert transport.statistics()["open"] == 0


@only_http1(OWN_CLOCK)
@pytest.mark.clock
async def test_each_idle_connection_has_a_clock_of_its_own(connect: Connect) -> None:
    """One that was used later goes later."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if exchange.connection == 2:
            await hold.wait()
        exchange.json({})

    async with scripted(script) as server:
        transport = connect(server, keepalive=4.0)
        first = asyncio.create_task(fetch(transport))
        await server.reached(1)
        second = asyncio.create_task(fetch(transport))
        await server.reached(2)
        await first
        await settle()
        await pass_time(2.0)
        hold.set()
        await second
        await settle()
        assert transport.statistics()["idle"] == 2

        await pass_time(2.5)
        assert transport.statistics() == {"open": 1, "idle": 1, "waiting": 0}
        await pass_time(2.0)
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


@only_http1(OWN_CLOCK)
@pytest.mark.clock
async def test_an_old_connection_is_left_for_a_new_one(connect: Connect) -> None:
    """Constant traffic does not keep one for ever: the name may lead elsewhere by now."""
    async with scripted(json_answer({})) as server:
        transport = connect(server, keepalive=4.0, max_age=10.0)
        for _ in range(12):  # 36 seconds
            await fetch(transport)
            await pass_time(3.0)

    assert server.accepted == 3


@only_http1(OWN_CLOCK)
@pytest.mark.clock
async def test_age_does_not_cut_an_answer(connect: Connect) -> None:
    """A stream may last for hours; its connection is merely not used again."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"before ")
        await hold.wait()
        exchange.chunk(b"after")
        exchange.end()

    async with scripted(script) as server:
        transport = connect(server, keepalive=4.0, max_age=10.0)
        call = await ask(transport)
        first = await call.read(0)
        await pass_time(3600.0)
        hold.set()

        assert first + await body_of(call) == b"before after"
        call.close()
        await server.exchanges[0].closed()


# How a reused connection dies. Each is a request that gets not one byte of an answer.

Death = Callable[[Exchange], Awaitable[None]]


async def ends(exchange: Exchange) -> None:
    await exchange.request()
    exchange.close()


async def resets(exchange: Exchange) -> None:
    await exchange.request()
    exchange.reset()


async def ends_unread(exchange: Exchange) -> None:
    await exchange.anything()
    exchange.close()


async def resets_unread(exchange: Exchange) -> None:
    await exchange.anything()
    exchange.reset()


DEATHS = pytest.mark.parametrize(
    "death", [ends, resets, ends_unread, resets_unread], ids=lambda death: death.__name__
)
OUTGOING = pytest.mark.parametrize("outgoing", [GET, post(b"{}" * 500)], ids=["get", "post"])


def once_then(death: Death) -> Death:
    """Answer the first request of a connection, and let the second meet its death."""

    async def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            await exchange.request()
            exchange.json(exchange.connection)
        else:
            await death(exchange)

    return script


@only_http1(ONCE)
@DEATHS
@OUTGOING
async def test_a_reused_connection_that_dies_is_replaced(
    connect: Connect, resent: Resent, death: Death, outgoing: Outgoing
) -> None:
    """Nothing was answered, so it is asked again, on a connection that is fresh; once."""
    async with scripted(in_turn(once_then(death), json_answer("fresh"))) as server:
        transport = connect(server, race=UNHURRIED)
        assert await fetch(transport) == (200, b"1")
        await settle()
        call = await ask(transport, outgoing)

        assert (call.status, await body_of(call)) == (200, b'"fresh"')
        assert not call.reused
        call.close()

    assert (server.accepted, resent.times) == (2, 1)


@only_http1(ONCE)
@DEATHS
async def test_the_second_attempt_is_the_last(connect: Connect, death: Death) -> None:
    """A server that kills whoever asks is not asked a third time."""
    async with scripted(in_turn(once_then(death), death)) as server:
        transport = connect(server, race=UNHURRIED)
        await fetch(transport)
        await settle()
        with pytest.raises(UpstreamBroken):
            await fetch(transport)
        await settle()

        assert server.accepted == 2


@DEATHS
async def test_a_fresh_connection_that_dies_is_not_replaced(connect: Connect, death: Death) -> None:
    """Nobody closed it for being idle: the server may have begun the work."""
    async with scripted(in_turn(death, json_answer({}))) as server:
        transport = connect(server)
        with pytest.raises(UpstreamBroken):
            await ask(transport)
        await settle()
        assert server.accepted == 1

        assert await fetch(transport) == (200, b"{}")


@only_http1(ONCE)
@pytest.mark.clock
@OUTGOING
async def test_work_that_was_begun_is_not_begun_again(
    connect: Connect, resent: Resent, outgoing: Outgoing
) -> None:
    """A server that closes an idle connection does so before it has read the request.

    What breaks later breaks in the middle of work, and the caller decides what comes of it.
    """
    hold = asyncio.Event()

    async def works(exchange: Exchange) -> None:
        await exchange.request()
        await hold.wait()
        exchange.reset()

    async with scripted(in_turn(once_then(works), json_answer("fresh"))) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        asking = asyncio.create_task(ask(transport, outgoing))
        await eventually(lambda: len(server.requests) == 2, "it was asked")
        await pass_time(0.1)
        hold.set()
        with pytest.raises(UpstreamBroken):
            await asking
        await settle()

        assert (server.accepted, resent.times) == (1, 0)


@only_http1(ONCE)
@DEATHS
async def test_what_may_have_been_done_is_not_done_again(
    connect: Connect, resent: Resent, death: Death
) -> None:
    """However soon the end comes: the server has the whole request, and may have acted on it."""
    async with scripted(in_turn(once_then(death), json_answer("fresh"))) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        with pytest.raises(UpstreamBroken):
            await ask(transport, order())
        await settle()

        assert (server.accepted, resent.times) == (1, 0)


@pytest.mark.parametrize(
    "begun",
    [
        b"H",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
    ],
    ids=["a_letter", "half_a_status", "status", "half_a_head", "continue", "hints"],
)
@only_http1(ONCE)
async def test_an_answer_that_had_begun_is_not_asked_for_again(
    connect: Connect, begun: bytes
) -> None:
    """The server had taken up the request, whatever became of it."""

    async def dies_while_answering(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(begun)
        await exchange.sent()
        await settle()
        exchange.close()

    async with scripted(once_then(dies_while_answering)) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        with pytest.raises(UpstreamBroken):
            await ask(transport)
        await settle()

        assert server.accepted == 1


async def test_a_head_makes_an_answer_final(connect: Connect) -> None:
    """Once the caller has a status there is no second try, on whatever connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if len(server.requests) == 1:
            exchange.json({})
        else:
            exchange.send(OK[:-2])
            exchange.close()

    async with scripted(script) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        call = await ask(transport)
        with pytest.raises(UpstreamBroken):
            await body_of(call)
        call.close()
        await settle()

        assert len(server.requests) == 2


@only_http1(ONCE)
async def test_a_connection_that_was_closed_while_idle_is_not_tried(connect: Connect) -> None:
    """What the loop knows already costs nobody an attempt."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        await fetch(transport)
        server.exchanges[0].close()
        await eventually(lambda: server.exchanges[0].lost, "the server's side is closed")
        await settle()

        assert await fetch(transport) == (200, b"{}")
        assert [exchange.number for exchange in server.exchanges] == [1, 1]


@asynccontextmanager
async def bare_server() -> AsyncIterator[tuple[Upstream, socket.socket]]:
    """Listen without a loop, so that a test can close a socket between two of its steps."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield Upstream("engine", "http", *listening.getsockname()), listening


async def answer_by_hand(listening: socket.socket) -> socket.socket:
    """Accept one connection, answer its first request, and return it."""
    loop = asyncio.get_running_loop()
    async with patience("a request came"):
        connection, _ = await loop.sock_accept(listening)
        connection.setblocking(False)
        await loop.sock_recv(connection, 65536)
        await loop.sock_sendall(connection, OK)
    return connection


@only_http1(ONCE)
@pytest.mark.parametrize("how", ["reset", "end", "answer"])
@pytest.mark.parametrize("outgoing", [post(), order()], ids=["harmless", "order"])
async def test_a_connection_that_has_something_to_say_is_not_tried(
    connect: Connect, resent: Resent, how: str, outgoing: Outgoing
) -> None:
    """It came in the very moment before we wrote: our loop could not have known, the kernel does.

    An answer that nobody asked for would be taken for the next one, and be somebody else's.
    """
    async with bare_server() as (upstream, listening):
        transport = connect(upstream, race=UNHURRIED)
        asking = asyncio.create_task(fetch(transport))
        old = await answer_by_hand(listening)
        assert await asking == (200, b"hello")
        await settle()

        if how == "reset":
            old.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        says = partial(old.send, STRAY) if how == "answer" else old.close
        asyncio.get_running_loop().call_soon(says)
        again = asyncio.create_task(fetch(transport, outgoing))  # asks in the same turn
        new = await answer_by_hand(listening)

        assert await again == (200, b"hello")
        assert resent.times == 0
        old.close()
        new.close()


@only_http1(ONCE)
@pytest.mark.parametrize(
    "outgoing",
    [post(), order(), order(bytes(3 << 20))],
    ids=["harmless", "order", "large_order"],
)
async def test_what_has_not_arrived_is_sent_again(
    connect: Connect, resent: Resent, outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two passed each other: an end that confirms no byte of a request came before it."""
    # Here an end is never on its way, it has arrived; so the look that would find it is left out.
    monkeypatch.setattr("llmproxy.transport.http1.connection.has_news", lambda transport: False)
    async with bare_server() as (upstream, listening):
        transport = connect(upstream, race=0.0)
        asking = asyncio.create_task(fetch(transport))
        old = await answer_by_hand(listening)
        assert await asking == (200, b"hello")
        await settle()

        asyncio.get_running_loop().call_soon(old.close)
        again = asyncio.create_task(fetch(transport, outgoing))
        new = await answer_by_hand(listening)

        assert await again == (200, b"hello")
        assert resent.times == 1
        new.close()


async def hammer(transport: Transport, requests: int, pause: Callable[[], float]) -> list[object]:
    """Ask over and over from many callers at once; return everything that was not a 200."""
    wrong: list[object] = []

    async def caller(count: int) -> None:
        for _ in range(count):
            try:
                status, body = await fetch(transport, post())
                if (status, body) != (200, b"{}"):
                    wrong.append((status, body))
            except UpstreamError as error:
                wrong.append(error)
            await asyncio.sleep(pause())

    callers = 100
    await asyncio.gather(*(caller(requests // callers) for _ in range(callers)))
    return wrong


@only_http1(ONCE)
async def test_nobody_notices_a_keepalive_race(connect: Connect) -> None:
    """10,000 requests to an engine that closes what was idle for 5 ms, asked every 5 ms."""
    idle = 0.005  # seconds
    rng = random.Random(7)
    lost = 0

    async def script(exchange: Exchange) -> None:
        nonlocal lost
        exchange.keep_reads = False
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        try:
            async with asyncio.timeout(idle):
                await exchange.anything()
        except TimeoutError:
            lost += exchange.unread_in_kernel > 0
            exchange.close()

    async with scripted(script) as server:
        transport = connect(server, keepalive=4.0, race=UNHURRIED)
        wrong = await hammer(transport, 10_000, lambda: rng.uniform(0.6, 1.4) * idle)

    assert wrong == []
    assert lost > 0, "the race never happened, so this has shown nothing"
    assert len(server.requests) == 10_000


@only_http1(ONCE)
async def test_nobody_notices_a_keepalive_race_with_uvicorn(connect: Connect) -> None:
    """The same with the server that most engines run on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    rng = random.Random(8)
    async with under_uvicorn(app, timeout_keep_alive=0.005, lifespan="off") as served:
        upstream = Upstream("engine", "http", served.host, served.port)
        transport = connect(upstream, race=UNHURRIED)
        wrong = await hammer(transport, 2_000, lambda: rng.uniform(0.6, 1.4) * 0.005)

    assert wrong == []
