"""What is held when one side is faster than the other."""

import asyncio
from pathlib import Path

import pytest

from tests.support.calls import ask, eventually, settle
from tests.support.upstream import Exchange, Script, ScriptedServer, scripted
from tests.transport.conftest import Connect, only_http1

MIB = 1 << 20
WHOLE = 64 * MIB
PIECE = bytes(range(256)) * 256  # 64 KiB


async def pour(exchange: Exchange) -> None:
    """Send 64 MiB as fast as they are taken, in chunks."""
    exchange.keep_reads = False
    await exchange.request()
    exchange.begin()
    for _ in range(WHOLE // len(PIECE)):
        exchange.chunk(PIECE)
        await exchange.sent()
    exchange.end()


async def pour_counted(exchange: Exchange) -> None:
    """The same, counted."""
    exchange.keep_reads = False
    await exchange.request()
    exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % WHOLE)
    for _ in range(WHOLE // len(PIECE)):
        exchange.send(PIECE)
        await exchange.sent()


async def standstill(server: ScriptedServer) -> int:
    """Wait until the server can send nothing more, and return how much it could."""
    exchange = server.exchanges[0]
    await eventually(lambda: exchange.unsent > 0, "the server had to wait")
    before = -1
    while exchange.sent_bytes - exchange.unsent != before:
        before = exchange.sent_bytes - exchange.unsent
        await asyncio.sleep(0.05)
    return before


POURING = pytest.mark.parametrize("script", [pour, pour_counted], ids=["chunked", "counted"])


@POURING
async def test_a_reader_that_stops_stops_the_server(connect: Connect, script: Script) -> None:
    """Nobody reads: the server can send what buffers hold. Then somebody does, and all comes."""
    async with scripted(script) as server:
        call = await ask(connect(server))
        could_send = await standstill(server)
        got = 0
        while part := await call.read(0):
            start = got % 256
            assert part[:64] == PIECE[start : start + len(part[:64])]
            got += len(part)
        call.close()

    assert could_send < 8 * MIB  # the kernel's share included, most of it
    assert got == WHOLE


@POURING
async def test_what_we_hold_ourselves_is_little(
    connect: Connect, script: Script, tmp_path: Path
) -> None:
    """Over a unix socket the kernel takes 208 KiB, so the rest is in our hands."""
    async with scripted(script, path=tmp_path / "engine.sock") as server:
        call = await ask(connect(server))
        could_send = await standstill(server)
        call.close()

    assert could_send < 400 * 1024


@only_http1("httpx reads when it is asked to, and not before")
async def test_reading_pauses_again_and_again(connect: Connect, tmp_path: Path) -> None:
    """A slow reader is served in small portions; at no time is much more held than it takes."""
    async with scripted(pour, path=tmp_path / "engine.sock") as server:
        call = await ask(connect(server))
        exchange = None
        got = 0
        most = 0
        while part := await call.read(0):
            got += len(part)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            exchange = exchange or server.exchanges[0]
            most = max(most, exchange.sent_bytes - exchange.unsent - got)
        call.close()

    assert got == WHOLE
    assert most < MIB


@only_http1("httpx uses an HTTP/1 connection once: h11 would mix up answers")
async def test_a_paused_connection_is_good_again_afterwards(connect: Connect) -> None:
    """The pause ends with the answer, not with the connection."""
    size = 2 * MIB

    async def script(exchange: Exchange) -> None:
        exchange.keep_reads = False
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        exchange.send(b"x" * size)
        await exchange.sent()

    async with scripted(script) as server:
        transport = connect(server)
        for number in range(5):
            call = await ask(transport)
            await asyncio.sleep(0.02)  # for the pause to begin, where there is one
            got = 0
            while part := await call.read(0):
                got += len(part)
            call.close()
            await settle()

            assert got == size
            assert call.reused is (number > 0)


async def test_one_who_stands_still_holds_up_nobody_else(connect: Connect) -> None:
    """The neighbour on the next connection gets everything."""
    async with scripted(pour) as server:
        transport = connect(server)
        stuck = await ask(transport)
        await standstill(server)
        call = await ask(transport)
        got = 0
        while part := await call.read(0):
            got += len(part)
        call.close()
        stuck.close()

    assert got == WHOLE
