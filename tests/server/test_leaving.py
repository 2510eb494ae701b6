"""A client that hangs up is noticed at once, whatever it has sent before."""

import asyncio
from collections.abc import Callable

import pytest

from llmproxy.types import Receive, Scope, Send
from tests.server.apps import GET, asking, body, hello, start
from tests.server.corpus import CHUNKED, PATH, post
from tests.server.verdicts import still_serves
from tests.support.calls import eventually, settle
from tests.support.client import RawClient, request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, Script, scripted, taking

SOON = 5.0  # seconds; every clock of ours is far longer
LARGE = b'{"stream":true,"x":"' + b"x" * 300_000 + b'"}'


async def says_nothing(exchange: Exchange) -> None:
    await exchange.request()
    if exchange.requests[-1].method == b"GET":
        exchange.json({})
    else:
        await exchange.closed()


async def a_stream_without_an_end(exchange: Exchange) -> None:
    await exchange.request()
    if exchange.requests[-1].method == b"GET":
        exchange.json({})
        return
    exchange.begin()
    exchange.chunk(CHAT.events[0])
    await exchange.closed()


LEAVING: dict[str, Callable[[RawClient], None]] = {
    "fin": RawClient.close,
    "rst": RawClient.reset,
    "half_close": RawClient.half_close,
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("pipelined", [False, True], ids=["alone", "pipelined"])
@pytest.mark.parametrize(
    "script", [says_nothing, a_stream_without_an_end], ids=lambda f: f.__name__
)
async def test_the_engine_is_let_go(
    script: Script,
    pipelined: bool,
    large: bool,
    leave: Callable[[RawClient], None],
) -> None:
    """Neither a second request behind the first nor a body that came at once hides it."""
    async with (
        scripted(script) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(body=LARGE if large else b'{"stream":true}'))
        exchange = await engine.reached()
        await eventually(lambda: bool(exchange.requests), "the engine was asked")
        if script is a_stream_without_an_end:
            await client.head()
        if pipelined:
            client.send(request_bytes() * 3)
            await settle()
        began = asyncio.get_running_loop().time()
        leave(client)
        await exchange.closed()
        took = asyncio.get_running_loop().time() - began
        line = await proxy.log.line()
        alive = await still_serves(proxy.port)

    assert took < SOON
    assert line["status"] == 499
    assert len(engine.requests) == 2
    assert alive


async def test_half_a_close_of_one_who_does_not_read_is_noticed_too() -> None:
    """What it was sent may never arrive; its engine does not wait for that."""

    async def flood(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(b"x" * 65_536)
            await eventually(lambda: exchange.ended or not exchange.unsent, "there was room")

    async with (
        scripted(flood) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        await client.head()
        client.stop_reading()
        await asyncio.sleep(0.3)  # until nothing moves any more
        exchange = await engine.reached()
        began = asyncio.get_running_loop().time()
        client.half_close()
        await exchange.closed()
        took = asyncio.get_running_loop().time() - began

    assert took < SOON


async def test_a_pipelined_request_is_answered_by_the_end_of_the_connection() -> None:
    """The first answer is whole; the second request was never run."""
    app = hello()
    async with asking(app) as client:
        client.send(GET + GET)
        answer = await client.answer()
        rest = await client.rest()

    assert answer.status == 200
    assert answer.header(b"connection") == b"close"
    assert rest == b""
    assert len(app.scopes) == 1


async def test_a_pipelined_request_that_comes_late_is_not_run_either() -> None:
    """The answer had begun without saying that it would close."""
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await go.wait()
        await send(body(b"b"))

    async with asking(app) as client:
        client.send(GET)
        await client.head()
        client.send(GET)
        await settle()
        go.set()
        rest = await client.rest()

    assert rest == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    assert not client.was_reset


async def test_a_body_that_ends_too_early_costs_no_engine() -> None:
    """A length that was not kept, and the client gone."""
    async with scripted(says_nothing) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(post(b"Content-Length: 1000\r\n"))
            await settle()
            client.close()
            line = await proxy.log.line()
        touched = engine.accepted

    assert touched == 0
    assert line["status"] == 499


@pytest.mark.parametrize("rest", [b"5\r\nhello", b"5\r\nhelloXX", b"nonsense\r\n"])
async def test_an_upload_that_breaks_is_never_completed(rest: bytes) -> None:
    """The engine sees its end cut off, not a shorter upload."""
    sent: list[bytes] = []
    raw = post(CHUNKED, body=b"4\r\nwhat\r\n").replace(PATH, b"/v1/audio/transcriptions")
    raw = raw.replace(b"application/json", b"audio/wav")
    async with (
        scripted(taking(sent)) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(raw)
        await eventually(lambda: bool(sent), "the engine got a piece")
        client.send(rest)
        if rest == b"5\r\nhello":
            client.close()
        else:
            answer = await client.answer()
            assert answer.status == 400
        exchange = await engine.reached()
        await exchange.closed()

    assert exchange.read_bytes > 0
    assert b"0\r\n\r\n" not in b"".join(exchange.reads)


async def test_five_hundred_leave_at_once() -> None:
    """Every engine connection is closed soon, and nothing is left."""
    many = 500
    async with scripted(a_stream_without_an_end) as engine, proxied(engine.upstream) as proxy:
        loop = asyncio.get_running_loop()
        clients = []
        for _ in range(many):
            _, client = await loop.create_connection(RawClient, "127.0.0.1", proxy.port)
            client.send(CHAT.request)
            clients.append(client)
        await asyncio.gather(*(client.anything() for client in clients))
        began = loop.time()
        for number, client in enumerate(clients):
            (client.reset if number % 2 else client.close)()
        await engine.abandoned()
        took = loop.time() - began
        alive = await still_serves(proxy.port)

    assert took < 2 * SOON
    assert alive
