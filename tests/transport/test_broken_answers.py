"""Answers that end too soon, and silence in the middle of one."""

import asyncio

import pytest

from llmproxy.errors import UpstreamBroken
from llmproxy.transport import Call
from llmproxy.transport.interface import Silence
from tests.support.calls import GET, ask, body_of, fetch, settle
from tests.support.upstream import Exchange, Script, in_turn, json_answer, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect

COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"

TRUNCATED = pytest.mark.parametrize(
    ("answer", "body", "how"),
    [
        pytest.param(COUNTED + b"hello", b"hello", "close", id="counted"),
        pytest.param(COUNTED + b"hello", b"hello", "reset", id="counted_and_reset"),
        pytest.param(COUNTED, b"", "close", id="counted_and_empty"),
        pytest.param(COUNTED, b"", "reset", id="counted_empty_and_reset"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", b"hello", "close", id="no_last_chunk"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", b"hello", "reset", id="no_last_chunk_and_reset"),
        pytest.param(CHUNKED + b"a\r\nhello", b"hello", "close", id="inside_a_chunk"),
        pytest.param(CHUNKED + b"5\r\nhello", b"hello", "close", id="before_the_line_end"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello", "close", id="in_the_last_chunk"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0", b"hello", "close", id="in_the_last_size"),
        pytest.param(CHUNKED, b"", "close", id="before_the_first_chunk"),
        pytest.param(UNTIL_CLOSE + b"hello", b"hello", "reset", id="reset_instead_of_close"),
        pytest.param(UNTIL_CLOSE, b"", "reset", id="reset_before_the_body"),
    ],
)


def breaking(answer: bytes, how: str, *, when: asyncio.Event) -> Script:
    """Send an answer, wait for the word, and leave."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(answer)
        await when.wait()
        exchange.reset() if how == "reset" else exchange.close()

    return script


async def read_until_it_breaks(call: Call) -> bytes:
    """Return what came before the break."""
    found = b""
    with pytest.raises(UpstreamBroken):
        while part := await call.read(PATIENCE):
            found += part
    assert not call.over
    return found


@TRUNCATED
async def test_a_truncated_answer_is_never_complete(
    connect: Connect, answer: bytes, body: bytes, how: str
) -> None:
    """What came is passed on, and then its reader hears that it was not all."""
    told = asyncio.Event()

    async with scripted(in_turn(breaking(answer, how, when=told), json_answer({}))) as server:
        transport = connect(server)
        call = await ask(transport)
        came = b""
        while len(came) < len(body):
            came += await call.read(PATIENCE)
        told.set()

        assert came + await read_until_it_breaks(call) == body
        call.close()
        assert await fetch(transport) == (200, b"{}")

    assert server.accepted == 2


@TRUNCATED
async def test_it_is_not_complete_for_a_late_reader_either(
    connect: Connect, answer: bytes, body: bytes, how: str
) -> None:
    """The connection broke before anybody read, and the order of things is kept all the same."""
    told = asyncio.Event()
    told.set() if how == "close" else None

    async with scripted(breaking(answer, how, when=told)) as server:
        call = await ask(connect(server))
        await settle()
        told.set()
        await settle()
        came = await read_until_it_breaks(call)

        # A reset may overtake what the kernel still held; it can never add to it.
        assert body.startswith(came)
        assert how == "reset" or came == body


async def test_a_broken_answer_stays_broken(connect: Connect) -> None:
    """Asking again does not turn it into one that has ended well."""
    told = asyncio.Event()
    told.set()

    async with scripted(breaking(COUNTED + b"hello", "close", when=told)) as server:
        call = await ask(connect(server))
        assert await read_until_it_breaks(call) == b"hello"

        for _ in range(3):
            with pytest.raises(UpstreamBroken):
                await call.read(PATIENCE)
        assert not call.over


async def test_the_error_does_not_name_the_server(connect: Connect) -> None:
    """Its text goes to the caller; host, port and exception are for the log."""
    told = asyncio.Event()
    told.set()

    async with scripted(breaking(COUNTED, "reset", when=told)) as server:
        call = await ask(connect(server))
        with pytest.raises(UpstreamBroken) as broken:
            await call.read(PATIENCE)

    assert "127.0.0.1" not in broken.value.detail
    assert str(server.upstream.port) not in broken.value.detail
    assert "Errno" not in broken.value.detail


async def test_silence_is_told_and_ends_nothing(connect: Connect) -> None:
    """Whoever asked may do something else for a while, and ask again."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"one")
        await hold.wait()
        exchange.chunk(b"two")
        exchange.end()

    async with scripted(script) as server:
        call = await ask(connect(server))
        first = await call.read(PATIENCE)
        for _ in range(3):
            with pytest.raises(Silence):
                await call.read(0.01)
        hold.set()

        assert first + await body_of(call) == b"onetwo"


async def test_a_reader_may_change_its_patience(connect: Connect) -> None:
    """A short wait after a long one is short, a long one after a short one is long."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"one")
        await hold.wait()
        exchange.chunk(b"two")
        exchange.end()

    async with scripted(script) as server:
        loop = asyncio.get_running_loop()
        call = await ask(connect(server))
        await call.read(3600.0)
        with pytest.raises(Silence):
            await call.read(0.01)
        loop.call_later(0.05, hold.set)

        assert await call.read(0) == b"two"
        assert await call.read(0.01) == b""


async def test_silence_loses_no_byte(connect: Connect) -> None:
    """Patience that runs out just as a chunk arrives: the chunk is there the next time."""
    words = [b"%05d" % number for number in range(400)]

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for number, word in enumerate(words):
            exchange.chunk(word)
            await asyncio.sleep(0.0003 * (number % 7))
        exchange.end()

    async with scripted(script) as server:
        call = await ask(connect(server))
        found, silences = b"", 0
        while True:
            try:
                part = await call.read(0.0005)
            except Silence:
                silences += 1
                continue
            if not part:
                break
            found += part

    assert found == b"".join(words)
    assert silences > 0, "nobody was ever impatient, so this has shown nothing"


async def test_a_cancelled_read_loses_no_byte(connect: Connect) -> None:
    """A reader that is cancelled takes nothing with it."""
    words = [b"%05d" % number for number in range(200)]
    cancelled = 0

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for number, word in enumerate(words):
            exchange.chunk(word)
            for _ in range(number % 5):
                await asyncio.sleep(0)
        exchange.end()

    async with scripted(script) as server:
        call = await ask(connect(server), GET)
        found = b""
        while not call.over:
            reading = asyncio.create_task(call.read(PATIENCE))
            for _ in range(len(found) // 5 % 4):
                await asyncio.sleep(0)
            if reading.cancel():
                cancelled += 1
            try:
                found += await reading
            except asyncio.CancelledError:
                found += await call.read(PATIENCE)

    assert found == b"".join(words)
    assert cancelled > 0
