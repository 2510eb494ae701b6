"""Bodies that are passed on while they come in."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from llmproxy.errors import (
    ProxyError,
    RequestError,
    RequestTooLarge,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.records import Upstream
from llmproxy.transport import Outgoing
from tests.support.calls import HOST, Pieces, ask, body_of, eventually, fetch, post, settle
from tests.support.upstream import Exchange, in_turn, json_answer, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect, only_http1

MIB = 1 << 20


def upload(pieces: Pieces) -> Outgoing:
    return Outgoing(b"POST", b"/v1/audio/transcriptions", HOST, pieces)


async def test_a_length_that_is_known_is_sent(connect: Connect) -> None:
    """The server sees a counted body, and the same bytes."""
    async with scripted(json_answer({})) as server:
        await fetch(connect(server), upload(Pieces(b"one", b"", b"two", length=6)))

    assert server.requests[0].header(b"content-length") == b"6"
    assert server.requests[0].header(b"transfer-encoding") is None
    assert server.requests[0].body == b"onetwo"


async def test_without_a_length_it_goes_in_chunks(connect: Connect) -> None:
    """One for each piece; an empty piece is not the end."""
    async with scripted(json_answer({})) as server:
        await fetch(connect(server), upload(Pieces(b"one", b"", b"two" * 10)))

    assert server.requests[0].header(b"transfer-encoding") == b"chunked"
    assert server.requests[0].header(b"content-length") is None
    assert server.requests[0].body == b"one" + b"two" * 10
    assert server.exchanges[0].frames == [b"one", b"two" * 10]


@pytest.mark.parametrize("length", [0, None], ids=["counted", "chunked"])
async def test_an_upload_may_be_empty(connect: Connect, length: int | None) -> None:
    """Nothing is a body too."""
    async with scripted(json_answer({})) as server:
        assert await fetch(connect(server), upload(Pieces(length=length))) == (200, b"{}")

    assert server.requests[0].body == b""


@pytest.mark.parametrize("length", [6, None], ids=["counted", "chunked"])
async def test_the_first_part_arrives_before_the_second_exists(
    connect: Connect, length: int | None
) -> None:
    """Nothing waits for the whole."""
    heard = asyncio.Event()
    pieces = Pieces(b"one", length=length, open_end=True)

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        assert await exchange.piece() == b"one"
        heard.set()
        await exchange.body()
        exchange.json({})

    async with scripted(script) as server:
        asking = asyncio.create_task(fetch(connect(server), upload(pieces)))
        await asyncio.wait_for(heard.wait(), PATIENCE)
        pieces.put(b"two")
        pieces.end()

        assert await asking == (200, b"{}")
        assert server.requests[0].body == b"onetwo"


@pytest.mark.parametrize("length", [64 * MIB, None], ids=["counted", "chunked"])
async def test_a_server_that_does_not_read_stops_the_upload(
    connect: Connect, length: int | None
) -> None:
    """Only so much is asked of the caller as the server takes; then it goes on to the end."""
    pieces = Pieces(*[b"x" * MIB] * 64, length=length)
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        exchange.keep_reads = False
        await exchange.head()
        exchange.stop_reading()
        await go_on.wait()
        exchange.go_on_reading()
        total = 0
        async for piece in exchange.pieces():
            total += len(piece)
            exchange.requests[-1].received.clear()
        exchange.json(total)

    async with scripted(script) as server:
        asking = asyncio.create_task(fetch(connect(server), upload(pieces)))
        await server.reached()
        await eventually(lambda: pieces.asked >= 2, "the upload began")
        before = -1
        while pieces.asked != before:  # until nothing has moved for a while
            before = pieces.asked
            await asyncio.sleep(0.05)

        assert pieces.asked <= 12  # MiB; the kernel's buffers take the most of it
        go_on.set()
        assert await asking == (200, b"%d" % (64 * MIB))


@only_http1("httpcore sends the whole of a request before it reads")
@pytest.mark.parametrize("length", [6, None], ids=["counted", "chunked"])
async def test_the_server_may_answer_before_the_end(connect: Connect, length: int | None) -> None:
    """A refusal is heard at once, and the connection, half a request behind, is not used again."""
    pieces = Pieces(b"one", length=length, open_end=True)

    async def refuses(exchange: Exchange) -> None:
        await exchange.head()
        exchange.json({"error": "too large"}, b"413 Content Too Large")
        await exchange.closed()

    async with scripted(in_turn(refuses, json_answer({}))) as server:
        transport = connect(server)
        call = await ask(transport, upload(pieces))

        assert (call.status, await body_of(call)) == (413, b'{"error":"too large"}')
        call.close()
        await server.exchanges[0].closed()
        assert await fetch(transport) == (200, b"{}")


@only_http1("httpcore sends the whole of a request before it reads")
async def test_an_early_answer_may_go_on_beside_the_upload(connect: Connect) -> None:
    """A server that transcribes while it listens is answered to the end."""
    pieces = Pieces(b"one", open_end=True)

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        exchange.begin()
        async for piece in exchange.pieces():
            exchange.chunk(piece.upper())
        exchange.end()

    async with scripted(script) as server:
        call = await ask(connect(server), upload(pieces))
        first = await call.read(PATIENCE)
        pieces.put(b"two")
        second = await call.read(PATIENCE)
        pieces.end()

        assert (first, second) == (b"ONE", b"TWO")
        assert await call.read(PATIENCE) == b""


@only_http1("below httpcore the event loop gives up with the write")
async def test_a_refusal_is_heard_although_the_server_closed_with_it(connect: Connect) -> None:
    """What the server said arrives before its reset, and no write that fails may lose it."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large"

    class Refused(Pieces):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"one"
            peer, _ = await asyncio.get_running_loop().sock_accept(listening)
            with peer:
                peer.send(refusal)
            yield b"two"  # the connection is reset, and nobody has read it since

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        upstream = Upstream("engine", "http", "127.0.0.1", port)
        call = await ask(connect(upstream), upload(Refused()))

        assert (call.status, await body_of(call)) == (413, b"too large")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_upload_is_never_sent_twice(connect: Connect, how: str) -> None:
    """What was read of it is gone, so a connection that dies takes the call with it."""

    async def dies(exchange: Exchange) -> None:
        await exchange.request()
        exchange.reset() if how == "reset" else exchange.close()

    async def script(exchange: Exchange) -> None:
        if len(server.requests) == 0:
            await exchange.request()
            exchange.json({})
        else:
            await dies(exchange)

    async with scripted(script) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        pieces = Pieces(b"one", b"two")
        with pytest.raises(UpstreamBroken):
            await ask(transport, upload(pieces))
        await settle()

        assert len(server.requests) == 2


@only_http1("httpx takes a connection of its own choice")
async def test_an_upload_goes_over_a_fresh_connection(connect: Connect) -> None:
    """It could not be repeated, so it is not sent where it may get lost."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        await fetch(transport)
        await settle()
        call = await ask(transport, upload(Pieces(b"one")))

        assert not call.reused
        assert server.accepted == 2


class Broken(Exception):
    """Something that an upload may raise and that nobody here knows."""


@pytest.mark.parametrize("length", [6, None], ids=["counted", "chunked"])
async def test_what_we_object_to_in_an_upload_ends_the_call(
    connect: Connect, length: int | None
) -> None:
    """The one who called hears it, and half a request never looks like a whole one."""
    await upload_breaks(connect, RequestTooLarge("Larger than allowed."), length)


@pytest.mark.parametrize("length", [6, None], ids=["counted", "chunked"])
async def test_whatever_breaks_an_upload_ends_the_call(
    connect: Connect, length: int | None
) -> None:
    """An error that nobody here knows is passed on like one of ours."""
    await upload_breaks(connect, Broken("no idea"), length)


async def upload_breaks(connect: Connect, failure: Exception, length: int | None) -> None:
    """Let reading an upload fail half way, and see what caller and server learn of it."""
    pieces = Pieces(b"one", length=length, open_end=True)
    complete = False

    async def script(exchange: Exchange) -> None:
        nonlocal complete
        await exchange.head()
        assert await exchange.piece() == b"one"
        pieces.fail(failure)
        await exchange.body()  # raises when the client leaves
        complete = True

    async with scripted(script) as server:
        with pytest.raises(type(failure)):
            await ask(connect(server), upload(pieces), answer=1.0)
        await server.exchanges[0].closed()

    assert not complete


async def test_a_caller_who_stalls_does_not_run_down_the_server_s_clock(connect: Connect) -> None:
    """The answer is waited for from the moment at which the request is out, and not before."""
    pieces = Pieces(b"one", open_end=True)

    async with scripted(json_answer({})) as server:
        asking = asyncio.create_task(ask(connect(server), upload(pieces), answer=0.2))
        await server.reached()
        await asyncio.sleep(0.5)
        waiting = not asking.done()
        pieces.end()
        call = await asking

        assert waiting
        assert call.status == 200


async def test_the_server_has_its_whole_time(connect: Connect) -> None:
    """The clock starts with the last byte of the upload, wherever in a tick that was."""
    pieces = Pieces(b"one", open_end=True)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(0.4)  # less than the clock
        exchange.json({})

    async with scripted(script) as server:
        asking = asyncio.create_task(ask(connect(server), upload(pieces), answer=0.8))
        await server.reached()
        await asyncio.sleep(0.6)
        pieces.end()

        assert (await asking).status == 200


async def test_after_the_upload_the_clock_runs(connect: Connect) -> None:
    """A server that has everything and says nothing is given up."""

    async def silent(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.closed()

    async with scripted(silent) as server:
        with pytest.raises(UpstreamTimeout):
            await ask(connect(server), upload(Pieces(b"one", b"two")), answer=0.05)
        await server.exchanges[0].closed()


async def test_cancelling_ends_the_upload(connect: Connect) -> None:
    """Nobody asks the caller for more, and the server learns of it."""
    pieces = Pieces(b"one", open_end=True)

    async def script(exchange: Exchange) -> None:
        await exchange.request()

    async with scripted(script) as server:
        asking = asyncio.create_task(ask(connect(server), upload(pieces)))
        exchange = await server.reached()
        await eventually(lambda: pieces.asked == 2, "the second piece is waited for")
        asking.cancel()
        await exchange.closed()
        await asyncio.wait([asking])
        pieces.put(b"two")
        await settle()

        assert asking.cancelled()
        assert pieces.asked == 2


async def test_an_upload_is_held_to_its_length(connect: Connect) -> None:
    """A server would read the rest as a request that nobody has looked at."""
    received = b""

    async def script(exchange: Exchange) -> None:
        nonlocal received
        await exchange.request()
        await settle()
        received = bytes(exchange.unread)
        exchange.unread.clear()
        exchange.json({})
        await exchange.closed()

    async with scripted(script) as server:
        with suppress(UpstreamError, RequestError):  # refused in whatever words
            pieces = Pieces(b"one", b"two", b"GET /admin HTTP/1.1\r\n\r\n", length=6)
            (await ask(connect(server), upload(pieces))).close()

    assert received == b""


async def test_an_upload_that_ends_too_soon_ends_the_call(connect: Connect) -> None:
    """The server cannot answer half a request, so nobody waits for it."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()

    async with scripted(script) as server:
        with pytest.raises(ProxyError) as failure:
            await ask(connect(server), upload(Pieces(b"one", length=6)), answer=0.3)

    assert not isinstance(failure.value, UpstreamTimeout)


async def test_a_body_of_bytes_is_no_upload(connect: Connect) -> None:
    """It can be sent again, and it goes out at once."""
    async with scripted(json_answer({})) as server:
        assert await fetch(connect(server), post(b"x" * MIB)) == (200, b"{}")

    assert len(server.requests[0].body) == MIB
