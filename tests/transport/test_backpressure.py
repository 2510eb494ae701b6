"""What is held when one side is faster than the other."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from llmproxy.records import Upstream
from llmproxy.transport.http1.connection import IN_A_ROW, READ
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


class Pouring:
    """An engine with a thread of its own: it is never slower than whoever reads."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.upstream = Upstream("engine", "http", *listening.getsockname())
        self.sent = 0

    def run(self) -> None:
        with self._listening.accept()[0] as sock, suppress(OSError):  # its reader may have left
            sock.recv(READ)
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % WHOLE)
            while self.sent < WHOLE:
                self.sent += sock.send(PIECE)

    async def stuck(self) -> None:
        """Return once nothing more is taken of it."""
        before = -1
        while self.sent != before:
            before = self.sent
            await asyncio.sleep(0.05)


@asynccontextmanager
async def pouring() -> AsyncIterator[Pouring]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = Pouring(listening)
        thread = threading.Thread(target=engine.run)
        thread.start()
        yield engine
        await asyncio.to_thread(thread.join)


@only_http1("httpx reads when it is asked to, and not before")
async def test_an_engine_that_pours_leaves_others_their_turn(connect: Connect) -> None:
    """However much has come already, a turn of the loop takes a little of it."""
    turn = 0
    taken: Counter[int] = Counter()  # bytes in each turn

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def sink(chunk: bytes) -> bool:
        taken[turn] += len(chunk)
        return True

    async with pouring() as engine:
        call = await ask(connect(engine.upstream))
        counting = asyncio.create_task(turns())
        while await call.read(0):
            await call.flow(sink, 0, float("inf"))
        counting.cancel()
        call.close()

    assert sum(taken.values()) > WHOLE // 2
    assert max(taken.values()) <= READ * IN_A_ROW


@only_http1("httpx reads when it is asked to, and not before")
@pytest.mark.parametrize("wanted", range(1, 2 * IN_A_ROW + 1))
async def test_its_turn_does_not_make_it_read_for_nobody(connect: Connect, wanted: int) -> None:
    """A reader that stops in the middle of a row has stopped."""
    taken = 0

    def sink(chunk: bytes) -> bool:
        nonlocal taken
        taken += len(chunk)
        return taken < WHOLE // 2 + wanted * READ

    async with pouring() as engine:
        call = await ask(connect(engine.upstream))
        while taken < WHOLE // 2 + wanted * READ and await call.read(0):
            await call.flow(sink, 0, float("inf"))
        await engine.stuck()
        call.close()

    assert engine.sent < WHOLE  # what is missing is more than the kernel takes


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
