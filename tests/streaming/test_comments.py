"""Keep-alive comments: only where they hurt nobody, and never instead of an answer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT, NDJSON
from tests.support.upstream import Exchange, scripted

COMMENT = b": keep-alive\n\n"
PERIOD = 0.03  # seconds of silence after which one is sent
LONG = 5 * PERIOD


async def test_a_silent_stream_says_that_it_lives() -> None:
    """One comment for each period without a byte, before the first event and between events."""
    go_on = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await go_on.acquire()
        exchange.chunk(CHAT.events[0])
        await go_on.acquire()
        exchange.chunk(CHAT.whole.removeprefix(CHAT.events[0]))
        exchange.end()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=PERIOD) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        head = await client.head()
        stream = client.chunks()
        before = [await anext(stream) for _ in range(3)]
        go_on.release()
        between = [frame async for frame in until(stream, 4)]
        go_on.release()
        rest = [frame async for frame in stream if frame != COMMENT]

    assert head.header(b"content-type") == b"text/event-stream"
    assert before == [COMMENT] * 3
    assert CHAT.events[0] in between
    assert between.count(COMMENT) >= 3
    assert b"".join(rest) == CHAT.whole.removeprefix(CHAT.events[0])


async def until(stream: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    async for frame in stream:
        yield frame
        count -= 1
        if count == 0:
            return


async def test_no_comment_before_the_engine_has_answered() -> None:
    """A status that has not been given cannot be promised: the engine's own error still can."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(LONG)
        exchange.json({"error": {"message": "busy"}}, b"503 Service Unavailable")

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=PERIOD) as proxy,
    ):
        answer = await proxy.ask(CHAT.request)

    assert answer.status == 503
    assert json.loads(answer.body) == {"error": {"message": "busy"}}


@pytest.mark.parametrize(
    "half",
    [CHAT.events[0][:20], CHAT.events[0][:-1], b"data: x\r\n", b"data: x\r\n\r", b"data: x\r"],
    ids=["in_a_line", "after_a_line", "after_a_crlf", "in_the_last_crlf", "after_a_cr"],
)
async def test_no_comment_inside_an_event(half: bytes) -> None:
    """However long the engine takes for the second half of it."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(half)
        await asyncio.sleep(LONG)
        exchange.chunk(b"rest\n\n" + CHAT.whole)
        exchange.end()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=PERIOD) as proxy,
    ):
        answer, complete = await proxy.asked(CHAT.request)

    assert answer.body == half + b"rest\n\n" + CHAT.whole
    assert complete


async def test_no_comment_into_json_lines() -> None:
    """They know none."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=NDJSON.content_type)
        exchange.chunk(NDJSON.events[0])
        await asyncio.sleep(LONG)
        exchange.chunk(NDJSON.terminal[0])
        exchange.end()

    async with scripted(script) as engine:
        upstream = f"ollama://127.0.0.1:{engine.address[1]}"
        async with proxied(upstream, keepalive_comments=PERIOD) as proxy:
            answer = await proxy.ask(NDJSON.request)

    assert answer.body == NDJSON.events[0] + NDJSON.terminal[0]


async def test_no_comment_into_an_ordinary_answer() -> None:
    """JSON that takes long is JSON."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"choices":')
        await asyncio.sleep(LONG)
        exchange.chunk(b"[]}")
        exchange.end()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=PERIOD) as proxy,
    ):
        answer = await proxy.ask(request_bytes())

    assert answer.body == b'{"choices":[]}'


async def test_no_comment_after_the_last_word() -> None:
    """A stream that has said all is complete, though its engine does not hang up."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.whole)
        await exchange.closed()

    async with scripted(script) as engine:
        async with proxied(engine.upstream, keepalive_comments=PERIOD) as proxy:
            answer, complete = await proxy.asked(CHAT.request)
            line = await proxy.log.line()
        await engine.abandoned()

    assert answer.body == CHAT.whole
    assert complete
    assert line["outcome"] == "completed"


async def test_comments_do_not_make_a_dead_engine_live() -> None:
    """Its clock runs on: what we say ourselves is no sign of it."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await exchange.closed()

    async with scripted(script) as engine:
        settings = {"keepalive_comments": 0.2, "timeout_idle": 0.8}
        async with proxied(engine.upstream, **settings) as proxy:
            answer, complete = await proxy.asked(CHAT.request)

    assert 1 <= answer.body.count(COMMENT) <= 3
    assert b'"code":"upstream_timeout"' in answer.body
    assert not complete


async def test_comments_do_not_renew_the_clock_of_the_first_byte() -> None:
    """The same before the first event."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await exchange.closed()

    async with scripted(script) as engine:
        settings = {"keepalive_comments": 0.2, "timeout_first_byte": 0.8}
        async with proxied(engine.upstream, **settings) as proxy:
            answer, complete = await proxy.asked(CHAT.request)

    assert 1 <= answer.body.count(COMMENT) <= 3
    assert b'"code":"upstream_timeout"' in answer.body
    assert not complete


async def test_a_comment_commits_the_status_and_not_the_content() -> None:
    """A failure after it is told by the protocol's error event."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await go_on.wait()
        exchange.reset()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=PERIOD) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        head = await client.head()
        await client.anything()
        go_on.set()
        said = await client.rest()

    assert head.status == 200
    assert said.count(b"data: ") == 1
    assert b'data: {"error":{' in said
    assert not said.endswith(b"0\r\n\r\n")


async def test_none_are_sent_where_none_are_wanted() -> None:
    """0 means never."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await asyncio.sleep(LONG)
        exchange.chunk(CHAT.whole)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream, keepalive_comments=0) as proxy:
        answer = await proxy.ask(CHAT.request)

    assert answer.body == CHAT.whole
