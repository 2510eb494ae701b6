"""Whoever stops being interested closes the connection, in whatever phase, at once."""

import asyncio
from dataclasses import replace

import pytest

from llmproxy.errors import UpstreamError
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.http1.dialing import Dialing
from tests.support.calls import Asking, ask, body_of, eventually, fetch, post, settle
from tests.support.tls import Authority
from tests.support.upstream import Exchange, Script, json_answer, scripted
from tests.support.wire import PATIENCE, patience
from tests.transport.conftest import Connect, only_http1
from tests.transport.test_clocks import full_backlog, mute_server

NOTHING = {"open": 0, "idle": 0, "waiting": 0}


async def silent(exchange: Exchange) -> None:
    await exchange.request()
    await exchange.closed()


async def half_a_head(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(b"HTTP/1.1 200 OK\r\nx: ")
    await exchange.closed()


async def only_hints(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    await exchange.closed()


@pytest.mark.parametrize(
    "script", [silent, half_a_head, only_hints], ids=lambda script: script.__name__
)
async def test_before_the_head(connect: Connect, script: Script) -> None:
    """Cancelling the call closes its connection."""
    async with scripted(script) as server:
        transport = connect(server)
        asking = asyncio.create_task(ask(transport))
        exchange = await server.reached()
        await eventually(lambda: exchange.number == 1, "the request arrived")
        await settle()
        asking.cancel()
        await exchange.closed()
        await asyncio.wait([asking])

        assert asking.cancelled()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")


@only_http1("the other one has no call before the head is there")
@pytest.mark.parametrize(
    "script", [silent, half_a_head, only_hints], ids=lambda script: script.__name__
)
async def test_who_asks_can_let_go_before_the_head(connect: Connect, script: Script) -> None:
    """Whoever waits for it is not told that anything broke: it is for others to cancel that."""
    asker = Asking()
    async with scripted(script) as server:
        transport = connect(server)
        asking = asyncio.create_task(ask(transport, post()._replace(asker=asker)))
        exchange = await server.reached()
        await eventually(lambda: exchange.number == 1, "the request arrived")
        assert asker.call is not None
        asker.call.close()
        await exchange.closed()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")
        await settle()
        told = asking.done()
        asking.cancel()
        await asyncio.wait([asking])

    assert not told
    assert asking.cancelled()
    assert server.accepted == 1


async def head_only(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    await exchange.closed()


async def counted_head_only(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    await exchange.closed()


async def some_chunks(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    exchange.chunk(b"one")
    exchange.chunk(b"two")
    await exchange.closed()


async def endless_chunks(exchange: Exchange) -> None:
    exchange.keep_reads = False
    await exchange.request()
    exchange.begin()
    while not exchange.ended:
        exchange.chunk(b"x" * 10_000)
        await exchange.sent()
        await asyncio.sleep(0)


async def until_close(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await exchange.closed()


SCRIPTS = pytest.mark.parametrize(
    "script",
    [head_only, counted_head_only, some_chunks, endless_chunks, until_close],
    ids=lambda script: script.__name__,
)


@SCRIPTS
async def test_after_the_head(connect: Connect, script: Script) -> None:
    """Closing the call closes its connection, read or not."""
    async with scripted(script) as server:
        transport = connect(server)
        call = await ask(transport)
        call.close()
        await server.exchanges[0].closed()

        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")
        server.script = json_answer({})
        assert await fetch(transport) == (200, b"{}")


@SCRIPTS
async def test_while_reading(connect: Connect, script: Script) -> None:
    """A reader that is cancelled lets go, and so does the server."""
    async with scripted(script) as server:
        transport = connect(server)
        call = await ask(transport)

        async def relay() -> None:
            try:
                while await call.read(0):
                    pass
            finally:
                call.close()

        reading = asyncio.create_task(relay())
        await settle()
        reading.cancel()
        await server.exchanges[0].closed()
        await asyncio.wait([reading])

        assert reading.cancelled()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")


async def test_five_hundred_at_once(connect: Connect) -> None:
    """Every one of them closes its own, and all are closed soon."""
    async with scripted(some_chunks) as server:
        transport = connect(server)
        calls = await asyncio.gather(*(ask(transport) for _ in range(500)))
        for call in calls:
            call.close()
        await server.abandoned()

        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")
    assert server.accepted == 500


@only_http1("httpx uses an HTTP/1 connection once: h11 would mix up answers")
async def test_a_complete_answer_gives_its_connection_back(connect: Connect) -> None:
    """Closing after the end closes nothing; twice neither."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        call = await ask(transport)
        await body_of(call)
        call.close()
        call.close()
        await settle()
        again = await ask(transport)
        call.close()  # an old hand does not reach into a new call

        assert again.reused
        assert await body_of(again) == b"{}"
        assert server.accepted == 1


async def test_closing_twice_closes_once(connect: Connect) -> None:
    """The place that comes back is one place."""
    async with scripted(some_chunks) as server:
        transport = connect(server)
        call = await ask(transport)
        for _ in range(3):
            call.close()
            await settle()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")

        assert await call.read(PATIENCE) in (b"", b"one", b"two", b"onetwo")


@only_http1("httpx reads when it is asked to, so nothing is left to be thrown away")
async def test_an_answer_nobody_reads_to_its_end(connect: Connect) -> None:
    """Complete in our hands and closed unread: its connection is free all the same."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        call = await ask(transport)
        await settle()
        call.close()
        await settle()

        assert (await ask(transport)).reused
        assert server.accepted == 1


async def test_while_connecting(connect: Connect) -> None:
    """A connection that is being made is not made to the end."""
    async with full_backlog() as upstream:
        transport = connect(upstream)
        asking = asyncio.create_task(ask(transport))
        await asyncio.sleep(0.05)
        asking.cancel()
        async with patience("the call was cancelled", 2.0):
            await asyncio.wait([asking])

        assert asking.cancelled()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")


@only_http1("httpcore forgets the socket when it is cancelled here")
async def test_while_shaking_hands(connect: Connect) -> None:
    """The socket is open by then, and is closed."""
    async with mute_server() as (upstream, callers):
        transport = connect(upstream)
        asking = asyncio.create_task(ask(transport))
        caller = await callers.get()
        await caller.read(1)
        asking.cancel()
        async with patience("the socket was closed"):
            while await caller.read(65536):
                pass
        await asyncio.wait([asking])

        assert asking.cancelled()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")


@only_http1("the other one has no call before the head is there")
async def test_who_asks_can_let_go_while_a_connection_is_made(connect: Connect) -> None:
    """Whoever waits for it is not told either, and still has the place that it takes."""
    asker = Asking()
    async with mute_server() as (upstream, callers):
        transport = connect(upstream)
        asking = asyncio.create_task(ask(transport, post()._replace(asker=asker)))
        caller = await callers.get()
        await caller.read(1)
        assert asker.call is not None
        asker.call.close()
        async with patience("the socket was closed"):
            while await caller.read(65536):
                pass
        await settle()
        told, places = asking.done(), transport.statistics()
        asking.cancel()
        await asyncio.wait([asking])

        assert not told
        assert places["open"] == 1
        assert transport.statistics() == NOTHING


class NobodysPool:
    """Is told what becomes of a connection, and does not mind."""

    def returned(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


@pytest.mark.parametrize("told", [False, True], ids=["before_it_is_told", "after_it_is_told"])
@pytest.mark.parametrize("leave", ["cancelled", "given_up"])
async def test_a_connection_that_comes_too_late_is_closed(told: bool, leave: str) -> None:
    """It was made in the very moment in which nobody wanted it any more."""
    loop = asyncio.get_running_loop()
    go: asyncio.Future[None] = loop.create_future()

    async def attempt() -> Connection:
        _, connection = await loop.create_connection(
            lambda: Connection("engine", NobodysPool(), loop), *server.address
        )
        go.set_result(None)
        return connection

    def go_away(_: object) -> None:
        if leave == "given_up":
            dialing.close()
        waiting.cancel()

    async with scripted(silent) as server:
        dialing = Dialing(attempt(), loop)
        waiting = asyncio.create_task(dialing.made())
        if told:
            assert dialing._attempt is not None
            dialing._attempt.add_done_callback(go_away)
        else:
            go.add_done_callback(go_away)
        await asyncio.wait([waiting])
        await (await server.reached()).closed()

    assert waiting.cancelled()


@only_http1("at some of these steps httpcore forgets the socket")
@pytest.mark.parametrize("steps", range(25))
async def test_after_any_number_of_steps(connect: Connect, steps: int) -> None:
    """Cancelled at each step of the way, the whole call leaves nothing behind."""
    async with scripted(some_chunks) as server:
        transport = connect(server)

        async def whole() -> None:
            call = await ask(transport, post())
            try:
                while await call.read(0):
                    pass
            finally:
                call.close()

        doing = asyncio.create_task(whole())
        for _ in range(steps):
            await asyncio.sleep(0)
        doing.cancel()
        await asyncio.wait([doing])

        assert doing.cancelled()
        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")
        await server.abandoned()


async def test_over_tls(connect: Connect, authority: Authority) -> None:
    """No polite goodbye is waited for."""
    async with scripted(some_chunks, tls=authority.server("127.0.0.1")) as server:
        server.upstream = replace(server.upstream, ca=authority.file)
        transport = connect(server)
        call = await ask(transport)
        await call.read(0)
        call.close()
        await server.exchanges[0].closed()

        await eventually(lambda: transport.statistics() == NOTHING, "nothing is left")


async def test_closing_the_transport_closes_what_is_idle(connect: Connect) -> None:
    """And a second time there is nothing more to do."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        await asyncio.gather(*(fetch(transport) for _ in range(5)))
        await transport.aclose()
        await transport.aclose()
        await server.abandoned()


@pytest.mark.parametrize("script", [silent, some_chunks], ids=["opening", "reading"])
async def test_closing_the_transport_ends_the_calls_in_flight(
    connect: Connect, script: Script
) -> None:
    """Their callers hear of it at once, and not from a clock."""
    async with scripted(script) as server:
        transport = connect(server)

        async def whole() -> None:
            call = await ask(transport)
            while await call.read(0):
                pass

        doing = asyncio.create_task(whole())
        exchange = await server.reached()
        await eventually(lambda: exchange.number == 1, "the request arrived")
        await settle()
        await transport.aclose()
        await asyncio.wait([doing], timeout=0.5)
        told = doing.done()
        doing.cancel()
        await asyncio.wait([doing])

        assert told
        assert isinstance(doing.exception(), UpstreamError)
