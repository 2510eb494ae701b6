"""The same bytes, and each read of the socket by itself."""

import asyncio
import random

import pytest

from tests.support.calls import ask, body_of, post, reads, settle
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect, only_http1

MIB = 1 << 20
EVENTS = [
    'data: {"choices":[{"delta":{"content":"日本🦙 é"}}]}\n\n'.encode(),
    b": a comment\r\n\r\n",
    b"data: [DONE]\n\n",
]
BODY = b"".join(EVENTS)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"".join(b"%x;a=b\r\n%b\r\n" % (len(event), event) for event in EVENTS)
    + b"0\r\nx-trailer: 1\r\n\r\n"
)
COUNTED = b"HTTP/1.1 103 E\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


@pytest.mark.parametrize("framing", ["chunked", "counted", "until_close"])
async def test_one_read_is_one_chunk(connect: Connect, framing: str) -> None:
    """What the server wrote, waiting in between, arrives as it was written."""
    taken = asyncio.Event()
    words = [b"one", b"two\r\n\r\n", b"", b"3" * 3000, b"data: 4\n\n"]

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if framing == "chunked":
            exchange.begin()
        elif framing == "counted":
            total = sum(map(len, words))
            exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        else:
            exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for word in filter(None, words):
            await taken.wait()
            taken.clear()
            exchange.chunk(word) if framing == "chunked" else exchange.send(word)
        if framing == "chunked":
            exchange.end()
        elif framing == "until_close":
            exchange.close()

    async with scripted(script) as server:
        call = await ask(connect(server))
        found: list[bytes] = []
        for _ in filter(None, words):
            taken.set()
            found.append(await call.read(PATIENCE))

        assert found == [word for word in words if word]
        assert await call.read(PATIENCE) == b""


@only_http1("httpx gives out each chunk of the body by itself")
async def test_what_came_together_is_read_together(connect: Connect) -> None:
    """A burst of events is one piece: one write to the client, not many."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(CHUNKED)

    async with scripted(script) as server:
        call = await ask(connect(server))

        assert await reads(call) == [BODY]


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED], ids=["chunked", "counted"])
async def test_every_cut_brings_the_same_bytes(connect: Connect, answer: bytes) -> None:
    """Cut at each byte of the answer, heads and sizes included."""
    place = 0

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(answer[:place])
        await settle()
        exchange.send(answer[place:])

    async with scripted(script) as server:
        transport = connect(server)
        for place in range(1, len(answer)):
            call = await ask(transport)
            assert (call.status, await body_of(call)) == (200, BODY), place
            call.close()
            await settle()


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED], ids=["chunked", "counted"])
async def test_byte_by_byte_it_is_the_same(connect: Connect, answer: bytes) -> None:
    """Each byte is a read of its own."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        for byte in answer:
            exchange.send(bytes([byte]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async with scripted(script) as server:
        call = await ask(connect(server))

        assert (call.status, await body_of(call)) == (200, BODY)


@pytest.mark.parametrize("seed", range(8))
async def test_any_chunks_in_any_pieces(connect: Connect, seed: int) -> None:
    """Random chunks, random writes, random pauses, several answers on one connection."""
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice([0, 1, 300, 70_000, 300_000])) for _ in range(6)]

    async def script(exchange: Exchange) -> None:
        exchange.keep_reads = False
        await exchange.request()
        body = bodies[len(server.requests) - 1]
        wire = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        while body:
            size = rng.choice([1, 7, 1000, 65_536])
            wire += b"%X\r\n%b\r\n" % (len(body[:size]), body[:size])
            body = body[size:]
            if size == 1 and len(body) > 2000:
                wire += b"%x\r\n%b\r\n" % (len(body), body)
                body = b""
        wire += b"0\r\n\r\n"
        while wire:
            size = rng.choice([1, 5, 100, 40_000, 200_000])
            exchange.send(wire[:size])
            wire = wire[size:]
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        await exchange.sent()

    async with scripted(script) as server:
        transport = connect(server)
        for body in bodies:
            call = await ask(transport)
            assert await body_of(call) == body
            call.close()
            await settle()


async def test_an_event_of_sixteen_mebibytes(connect: Connect) -> None:
    """One chunk, one line, no limit of ours."""
    event = b"data: " + random.Random(1).randbytes(16 * MIB).replace(b"\n", b"") + b"\n\n"

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(event)
        exchange.end()
        await exchange.sent()

    async with scripted(script) as server:
        call = await ask(connect(server))

        assert await body_of(call) == event


async def test_what_we_send_is_what_arrives(connect: Connect) -> None:
    """Every byte there is, in the body and in the values of headers."""
    body = bytes(range(256)) * 3
    value = bytes(set(range(0x21, 0x7F)) | set(range(0x80, 0x100)))

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.json({})

    async with scripted(script) as server:
        await body_of(await ask(connect(server), post(body, headers=[(b"x-all", value)])))

    assert server.requests[0].body == body
    assert server.requests[0].header(b"x-all") == value
