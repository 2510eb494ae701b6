"""The clocks of opening a call: connecting, and waiting for the head."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmproxy.errors import UpstreamTimeout
from llmproxy.records import Upstream
from tests.support.calls import ask, body_of, eventually, fetch, post, settle
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PATIENCE, patience
from tests.transport.conftest import Connect, only_http1

MIB = 1 << 20


async def silent(exchange: Exchange) -> None:
    await exchange.request()
    await exchange.closed()


async def test_a_head_that_does_not_come(connect: Connect) -> None:
    """Cut at the clock, not before it, and the server is told by the close."""
    async with scripted(silent) as server:
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout) as timeout:
            await ask(connect(server), answer=0.1)
        waited = time.monotonic() - began
        await server.exchanges[0].closed()

    assert waited >= 0.09  # the clock of the loop is a millisecond coarse
    assert server.accepted == 1
    assert "127.0.0.1" not in timeout.value.detail


async def test_no_clock_means_no_clock(connect: Connect) -> None:
    """0 waits for as long as it takes."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await hold.wait()
        exchange.json({})

    async with scripted(script) as server:
        asking = asyncio.create_task(ask(connect(server), connect=0, answer=0))
        await server.reached()
        await asyncio.sleep(0.1)
        waiting = not asking.done()
        hold.set()
        call = await asking

        assert waiting
        assert await body_of(call) == b"{}"


@pytest.mark.parametrize(
    "drop",
    [
        pytest.param(b"x", id="of_a_head"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n", id="of_hints"),
    ],
)
async def test_the_clock_of_the_head_is_not_renewed(connect: Connect, drop: bytes) -> None:
    """A head that drips is as late as one that does not come."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if drop == b"x":
            exchange.send(b"HTTP/1.1 200 OK\r\nx: ")
        while not exchange.ended:
            exchange.send(drop)
            await asyncio.sleep(0.01)

    async with scripted(script) as server:
        async with patience("the head was given up", 1.0):
            with pytest.raises(UpstreamTimeout):
                await ask(connect(server), answer=0.1)
        await server.exchanges[0].closed()


async def test_the_clock_ends_with_the_head(connect: Connect) -> None:
    """How long the body takes is not its business."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await hold.wait()
        exchange.chunk(b"late")
        exchange.end()

    async with scripted(script) as server:
        call = await ask(connect(server), answer=0.1)
        asyncio.get_running_loop().call_later(0.25, hold.set)

        assert await body_of(call) == b"late"


@only_http1("httpx says by itself when a request is out")
async def test_a_large_request_has_to_be_out_first(connect: Connect) -> None:
    """A server that takes its time to read the request has not begun to be late."""
    loop = asyncio.get_running_loop()

    async def script(exchange: Exchange) -> None:
        exchange.keep_reads = False
        began = loop.time()
        while (passed := loop.time() - began) < 1.2:  # half as long again as the clock
            due = passed * 7 * MIB  # at a pace that a busy machine can make up for
            exchange.go_on_reading()
            await eventually(lambda due=due: exchange.read_bytes >= due, "a sip came")  # type: ignore[misc]  # bound by its default
            exchange.stop_reading()
            await asyncio.sleep(0.02)
        exchange.go_on_reading()
        await exchange.request()
        await asyncio.sleep(0.1)  # less than the clock, which runs from about here
        exchange.json({})

    # Several packets of the loopback interface, of 64 KiB each: where there is room for one only,
    # the kernels wait for each other for a second now and then.
    async with scripted(script, receive_buffer=512 * 1024) as server:
        call = await ask(connect(server), post(b"x" * (24 * MIB)), answer=0.8)

        assert call.status == 200


@asynccontextmanager
async def full_backlog() -> AsyncIterator[Upstream]:
    """Listen without accepting, with a queue that is full: a further SYN is not answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting: list[socket.socket] = []
        try:
            for _ in range(4):
                each = socket.socket()
                each.setblocking(False)
                each.connect_ex(listening.getsockname())
                waiting.append(each)
            await settle()
            yield Upstream("engine", "http", *listening.getsockname())
        finally:
            for each in waiting:
                each.close()


async def test_a_connection_that_does_not_come_about(connect: Connect) -> None:
    """Nobody answers: cut at the clock of connecting, long before the kernel gives up."""
    async with full_backlog() as upstream:
        began = time.monotonic()
        async with patience("the connection was given up", 5.0):
            with pytest.raises(UpstreamTimeout):
                await ask(connect(upstream), connect=0.1)

        assert time.monotonic() - began >= 0.09  # the clock of the loop is a millisecond coarse


@asynccontextmanager
async def mute_server() -> AsyncIterator[tuple[Upstream, asyncio.Queue[asyncio.StreamReader]]]:
    """Accept, and never say a word of TLS."""
    callers: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        callers.put_nowait(reader)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield Upstream("engine", "https", *server.sockets[0].getsockname()), callers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_a_handshake_that_is_not_answered(connect: Connect) -> None:
    """It belongs to connecting, and goes by its clock; the socket does not stay behind."""
    async with mute_server() as (upstream, callers):
        transport = connect(upstream)
        async with patience("the handshake was given up", 5.0):
            with pytest.raises(UpstreamTimeout):
                await ask(transport, connect=0.1)
        caller = await callers.get()
        async with patience("the socket was closed"):
            while await caller.read(65536):
                pass

        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_the_clocks_do_not_add_up(connect: Connect) -> None:
    """A quick connection leaves the head its whole time."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(0.15)
        exchange.json({})

    async with scripted(script) as server:
        call = await ask(connect(server), connect=0.1, answer=PATIENCE)

        assert call.status == 200
        assert await fetch(connect(server)) == (200, b"{}")
