"""Every kind of stream, broken in every way at every kind of place.

Generated, not hand-picked. The rule behind all of it: a truncated answer never looks finished.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.support.client import RawClient, request_bytes
from tests.support.rig import Rig, proxied
from tests.support.streams import CHAT, KNOWN, OTHER, Dialect, judge
from tests.support.upstream import Exchange, ScriptedServer, scripted
from tests.support.wire import PeerLeft

IDLE = 0.1  # seconds of silence after which an answer is given up

Fault = Callable[[Exchange], Awaitable[None]]


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def fin_in_a_chunk(exchange: Exchange) -> None:
    exchange.send(b"1000\r\n")
    exchange.close()


async def fin_between_chunks(exchange: Exchange) -> None:
    exchange.close()


async def last_chunk(exchange: Exchange) -> None:
    exchange.end()


async def silence(exchange: Exchange) -> None:
    await exchange.closed()


async def garbage(exchange: Exchange) -> None:
    exchange.send(b"zz\r\n")
    await exchange.closed()


FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (reset, fin_in_a_chunk, fin_between_chunks, last_chunk, silence, garbage)
}


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of a stream arrives, and what has to be added to close what is unfinished."""

    before: bytes
    closing: bytes


def cuts(dialect: Dialect) -> dict[str, Cut]:
    """Return places at which a stream may break off, by name."""
    first, second, _ = dialect.events
    if dialect.name == "ndjson":
        return {
            "at_a_boundary": Cut(first + second, b""),
            "in_an_event": Cut(first + second[: len(second) // 2], b"\n"),
            "in_a_character": Cut(first + cut_in_a_character(second), b"\n"),
        }
    return {
        "at_a_boundary": Cut(first + second, b""),
        "in_an_event": Cut(first + second[: len(second) // 2], b"\n\n"),
        "in_a_name": Cut(first + second[:3], b"\n\n"),
        "in_a_character": Cut(first + cut_in_a_character(second), b"\n\n"),
        "after_a_line": Cut(first + second[:-1], b"\n"),
    }


def cut_in_a_character(event: bytes) -> bytes:
    """Return an event up to the middle of an ö, or of the event when it has none."""
    at = event.find("ö".encode())
    return event[: at + 1] if at >= 0 else event[: len(event) // 2]


MATRIX = [
    pytest.param(dialect, fault, cut, id=f"{dialect.name}-{name}-{place}")
    for dialect in (*KNOWN, OTHER)
    for name, fault in FAULTS.items()
    for place, cut in cuts(dialect).items()
]


class Broken:
    """An engine whose first answer breaks; every later one is whole."""

    def __init__(self, dialect: Dialect, before: bytes, fault: Fault) -> None:
        self.dialect = dialect
        self.before = before
        self.fault = fault
        self.read = asyncio.Event()  # the client has everything that came before the fault

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=self.dialect.content_type)
        if len(exchange.server.requests) == 1:
            exchange.chunk(self.before)
            await self.read.wait()
            await self.fault(exchange)
        else:
            exchange.chunk(self.dialect.whole)
            exchange.end()


def upstream_of(dialect: Dialect, engine: ScriptedServer) -> str:
    return f"engine={dialect.preset}://127.0.0.1:{engine.address[1]}"


async def everything(client: RawClient, broken: Broken) -> bytes:
    """Return all that the client gets of the body, letting the fault happen on the way."""
    body = b""
    try:
        async for frame in client.chunks():
            body += frame
            if body == broken.before:
                broken.read.set()
    except PeerLeft:
        pass
    return body


async def whole_answer_follows(proxy: Rig, dialect: Dialect) -> bool:
    answer, complete = await proxy.asked(dialect.request)
    return complete and answer.body == dialect.whole


@pytest.mark.parametrize(("dialect", "fault", "cut"), MATRIX)
async def test_a_broken_stream_never_looks_finished(
    dialect: Dialect, fault: Fault, cut: Cut
) -> None:
    """What came is passed on, then the protocol's error or nothing, and never a proper end."""
    broken = Broken(dialect, cut.before, fault)
    async with (
        scripted(broken) as engine,
        proxied(upstream_of(dialect, engine), timeout_idle=IDLE) as proxy,
    ):
        async with proxy.client() as client:
            client.send(dialect.request)
            head = await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()
        verdict = judge(dialect, body)
        assert await whole_answer_follows(proxy, dialect)

    added = body.removeprefix(cut.before)
    assert head.status == 200
    assert body.startswith(cut.before)
    assert not verdict.complete
    assert b"[DONE]" not in body
    if dialect is OTHER:
        # Nothing is known of its end: a proper one is mirrored, any other is cut.
        assert added == b""
        assert client.complete == (fault is last_chunk)
    else:
        assert not client.complete
        assert added.startswith(cut.closing)
        told = added.removeprefix(cut.closing)
        assert told == expected_error(dialect, fault, told)
        assert verdict.error is not None
        assert line["outcome"] == "stream_broken"
        assert line["code"] == code_of(fault)


def code_of(fault: Fault) -> str:
    return "upstream_timeout" if fault is silence else "upstream_error"


def expected_error(dialect: Dialect, fault: Fault, told: bytes) -> bytes:
    """Return the error event, byte for byte; only its sentence is taken from what was told."""
    message = json.loads(told[told.index(b"{") :])
    if dialect.name in ("messages", "responses"):
        detail = message.get("error", message)
        text, code = json.dumps(detail["message"]), code_of(fault)
        if dialect.name == "messages":
            fields = f'{{"type":"api_error","message":{text},"code":"{code}"}}'
            data = f'{{"type":"error","error":{fields}}}'
        else:
            data = f'{{"type":"error","code":"{code}","message":{text},"param":null}}'
        return f"event: error\ndata: {data}\n\n".encode()
    text = json.dumps(message["error"]["message"])
    data = (
        f'{{"error":{{"message":{text},"type":"server_error","param":null,'
        f'"code":"{code_of(fault)}"}}}}'
    )
    return f"{data}\n".encode() if dialect.name == "ndjson" else f"data: {data}\n\n".encode()


@pytest.mark.parametrize("fault", [reset, fin_between_chunks, silence], ids=lambda f: f.__name__)
@pytest.mark.parametrize("place", [2, 10], ids=["early", "late"])
async def test_a_counted_answer_that_stays_short_is_cut(fault: Fault, place: int) -> None:
    """The length that was promised is not kept, and nothing is put in to fill it."""
    body = b'{"choices":[]}'
    read = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body[:place])
        )
        await read.wait()
        await fault(exchange)

    async with scripted(script) as engine, proxied(engine.upstream, timeout_idle=IDLE) as proxy:
        async with proxy.client() as client:
            client.send(request_bytes())
            await client.head()
            got = await client.exactly(place)
            read.set()
            got += await client.rest()
        line = await proxy.log.line()

    assert got == body[:place]
    assert line["outcome"] == "stream_broken"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_chunked_answer_without_its_end_is_cut(fault: Fault) -> None:
    """JSON has no place for an error event: only the missing end tells."""
    read = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"choices":')
        await read.wait()
        await fault(exchange)

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, timeout_idle=IDLE) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes())
        await client.head()
        body = b""
        try:
            async for frame in client.chunks():
                body += frame
                read.set()
        except PeerLeft:
            pass

    assert body == b'{"choices":'
    assert client.complete == (fault is last_chunk)


async def test_a_stream_that_ends_with_its_connection_needs_its_last_word() -> None:
    """Without length and chunks the end proves nothing; where a last word exists it is wanted."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        events = CHAT.events if len(exchange.server.requests) == 1 else (CHAT.whole,)
        for event in events:
            exchange.send(event)
        exchange.close()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        broken, broken_complete = await proxy.asked(CHAT.request)
        whole, whole_complete = await proxy.asked(CHAT.request)

    assert judge(CHAT, broken.body).error is not None
    assert not broken_complete
    assert whole.body == CHAT.whole
    assert whole_complete
