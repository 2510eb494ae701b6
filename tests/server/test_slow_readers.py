"""A client that does not take its answer holds little of ours, and not for long."""

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmproxy.server.bounds import Bounds
from tests.server.apps import GET, OLD, Saying, asking, body, saying, start
from tests.support.calls import eventually
from tests.support.client import RawClient, request_bytes
from tests.support.rig import proxied, served_here
from tests.support.upstream import Exchange, scripted

SHORT = 0.5  # seconds
LATE = 5.0  # seconds by which it must have been noticed
PIECE = b"x" * 16_384
OURS = 512 * 1024  # bytes of our memory for one reader who stands still
LAST = request_bytes(b"/", method=b"GET", headers=[(b"connection", b"close")], body=None)
SEND_BUFFER = 2 * 256 * 1024  # the kernel doubles what it is told


def has_ended(sock: socket.socket) -> bool:
    """Tell whether the kernel knows that the connection is over, whatever is still unread."""
    over = select.poll()
    over.register(sock.fileno(), select.POLLRDHUP)
    return bool(over.poll(0))


@asynccontextmanager
async def narrow(port: int) -> AsyncIterator[RawClient]:
    """Connect with a small receive buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    _, client = await loop.create_connection(RawClient, sock=sock)
    try:
        yield client
    finally:
        client.transport.abort()
        await eventually(lambda: client.lost, "the client was gone")


async def test_a_reader_that_stops_holds_little() -> None:
    """What the engine could send is what the kernel took, and at most 512 KiB of ours."""

    async def flood(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(PIECE)
            await eventually(lambda: exchange.ended or not exchange.unsent, "there was room")

    async with (
        scripted(flood, send_buffer=16_384) as engine,
        proxied(engine.upstream) as proxy,
        narrow(proxy.port) as client,
    ):
        client.send(request_bytes(body=b'{"stream":true}'))
        await client.head()
        client.stop_reading()
        exchange = await engine.reached()
        sent = -1
        while sent != exchange.sent_bytes:
            sent = exchange.sent_bytes
            await asyncio.sleep(0.3)
        engine_to_us = exchange.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        received = 8 * 1024 * 1024  # the most that the kernel keeps of what we do not read

    assert sent < OURS + SEND_BUFFER + engine_to_us + received


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half_closed"])
async def test_a_reader_that_stops_is_cut(half_closed: bool) -> None:
    """Once it has taken nothing for the write time; leaving by half does not delay it."""
    app = saying(start(), *[body(PIECE, more=True)] * 100_000)
    async with (
        served_here(app, bounds=Bounds(write_timeout=SHORT), lifespan="off") as port,
        narrow(port) as client,
    ):
        client.send(GET)
        await client.head()
        client.stop_reading()
        began = asyncio.get_running_loop().time()
        if half_closed:
            client.half_close()
        await asyncio.sleep(SHORT + 1)
        given_up = app.ended
        client.go_on_reading()
        await client.closed()
        took = asyncio.get_running_loop().time() - began

    assert given_up
    assert took < LATE
    assert client.read_bytes < 4 * 1024 * 1024


LARGE = 4_000_000  # bytes; more than the kernel keeps of both sides
WHOLE = start(200, (b"content-length", b"%d" % LARGE))
CUT = {
    "chunked": (saying(start(), *[body(PIECE, more=True)] * 100_000), GET),
    "counted": (saying(WHOLE, *[body(PIECE, more=True)] * (LARGE // len(PIECE))), GET),
    # Only the end of the connection tells that such an answer is complete.
    "old": (saying(start(), *[body(PIECE, more=True)] * 100_000), OLD),
    "old_and_said": (saying(start(), body(b"x" * LARGE)), OLD),
    "said": (saying(WHOLE, body(b"x" * LARGE)), LAST),
}


@pytest.mark.parametrize(("app", "request_"), CUT.values(), ids=CUT.keys())
async def test_a_reader_that_was_cut_knows_it(app: Saying, request_: bytes) -> None:
    """It is reset: were it merely closed, half an answer could look like the whole of it."""
    async with (
        served_here(app, bounds=Bounds(write_timeout=SHORT, linger=SHORT), lifespan="off") as port,
        narrow(port) as client,
    ):
        client.send(request_)
        await client.head()
        client.stop_reading()
        # Until its kernel has heard of the end: it learns by what it is still sent, or by this.
        await eventually(lambda: has_ended(client.socket), "it was cut")
        client.go_on_reading()
        await client.closed()

        assert client.was_reset
        assert client.read_bytes < LARGE


async def test_a_reader_that_keeps_moving_is_not_cut() -> None:
    """Progress is asked for, not speed; that of the kernel's buffer counts too.

    It takes less in the write time than would make the kernel ask for more of ours.
    """
    app = saying(start(), *[body(PIECE, more=True)] * 100_000)
    async with (
        served_here(app, bounds=Bounds(write_timeout=SHORT), lifespan="off") as port,
        narrow(port) as client,
    ):
        client.send(GET)
        await client.head()
        taken = 0
        for _ in range(16):
            taken += len(await client.sip(500, 0.1))
        given_up = app.ended

    assert not given_up
    assert taken < SEND_BUFFER / 3


async def test_a_last_word_has_the_time_that_its_reader_needs() -> None:
    """A whole answer that is on its way is not cut because the connection is to close."""
    size = 1_500_000
    app = saying(start(413, (b"content-length", b"%d" % size)), body(b"x" * size), read=False)
    async with (
        served_here(app, bounds=Bounds(write_timeout=2, linger=0.3), lifespan="off") as port,
        narrow(port) as client,
    ):
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
        await client.head()
        taken = len(client.unread)
        for _ in range(30):
            taken += len(await client.sip(2000, 0.05))
        client.go_on_reading()
        taken += len(await client.rest())

    assert taken >= size


async def test_a_reader_that_leaves_is_noticed_while_it_is_waited_for() -> None:
    """The app does not wait in `send` for somebody who is gone."""
    app = saying(start(), *[body(PIECE, more=True)] * 100_000)
    async with asking(app) as client:
        client.send(GET)
        await client.head()
        client.stop_reading()
        await asyncio.sleep(0.1)
        client.reset()
        await eventually(lambda: client.lost, "the client was gone")
