"""When a stream counts as finished, and what is said when it does not."""

import asyncio

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT, KNOWN, MESSAGES, NDJSON, OTHER, Dialect, judge
from tests.support.upstream import Exchange, ScriptedServer, scripted

FINISHED_CHAT = b"".join(CHAT.events) + CHAT.terminal[0]  # a finish_reason, and no [DONE]


def upstream_of(dialect: Dialect, engine: ScriptedServer) -> str:
    return f"engine={dialect.preset}://127.0.0.1:{engine.address[1]}"


@pytest.mark.parametrize("dialect", [*KNOWN, OTHER], ids=lambda dialect: dialect.name)
async def test_a_finished_stream_is_complete(dialect: Dialect) -> None:
    """The protocol's own last word, whatever the protocol, makes a proper end."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=dialect.content_type)
        for event in (*dialect.events, *dialect.terminal):
            exchange.chunk(event)
        exchange.end()

    async with scripted(script) as engine, proxied(upstream_of(dialect, engine)) as proxy:
        answer, complete = await proxy.asked(dialect.request)
        line = await proxy.log.line()

    assert answer.body == dialect.whole
    assert complete
    assert line["outcome"] == "completed"


async def test_an_end_without_done_is_complete_after_a_finish_reason() -> None:
    """Some engines never send [DONE]; the end is passed on at once, and none is made up."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(FINISHED_CHAT)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(CHAT.request)
        line = await proxy.log.line()

    assert answer.body == FINISHED_CHAT
    assert complete
    assert line["duration_ms"] < 5000


@pytest.mark.parametrize("dialect", [MESSAGES, NDJSON], ids=lambda dialect: dialect.name)
async def test_the_last_line_of_a_proper_end_may_be_left_open(dialect: Dialect) -> None:
    """It says that the answer is over, and nothing else: nobody misses anything, or is told so."""
    stream = dialect.whole.rstrip(b"\n")

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=dialect.content_type)
        exchange.chunk(stream)
        exchange.end()

    async with scripted(script) as engine, proxied(upstream_of(dialect, engine)) as proxy:
        answer, complete = await proxy.asked(dialect.request)
        line = await proxy.log.line()

    assert answer.body == stream
    assert complete
    assert line["outcome"] == "completed"


@pytest.mark.parametrize("cut", [20, 60, 100, 130])
async def test_an_end_inside_the_last_word_is_not_the_last_word(cut: int) -> None:
    """Half an event tells a client nothing, though it may hold the word `finish_reason`."""
    last = CHAT.terminal[0]
    before = b"".join(CHAT.events) + last[: min(cut, len(last) - 2)]

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(before)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(CHAT.request)

    assert not judge(CHAT, before).complete
    assert answer.body.startswith(before)
    assert judge(CHAT, answer.body).error is not None
    assert not complete


@pytest.mark.parametrize(
    "stream", [CHAT.whole, CHAT.whole.removesuffix(b"\n\n")], ids=["closed", "without_a_blank_line"]
)
async def test_a_connection_that_breaks_after_the_last_word_breaks_nothing(stream: bytes) -> None:
    """The answer was complete; nobody is told of an error behind [DONE]."""
    read = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(stream)
        await read.wait()
        exchange.reset()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(CHAT.request)
            await client.head()
            body = b""
            async for frame in client.chunks():
                body += frame
                read.set()
        line = await proxy.log.line()

    assert body == stream
    assert client.complete
    assert line["outcome"] == "completed"


async def test_an_engines_own_error_event_is_not_followed_by_ours() -> None:
    """It has said that it failed; saying it twice would hide its reason."""
    said = CHAT.events[0] + b'data: {"error":{"message":"out of memory","code":500}}\n\n'

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(said)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(CHAT.request)
        line = await proxy.log.line()

    assert answer.body == said
    assert not complete
    assert line["outcome"] == "stream_broken"


async def test_a_stream_of_another_status_ends_as_its_engine_ends_it() -> None:
    """Only a 200 has promised a stream of tokens."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(b"500 Internal Server Error")
        exchange.chunk(b'data: {"oops":1}\n\n')
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(CHAT.request)

    assert answer.status == 500
    assert answer.body == b'data: {"oops":1}\n\n'
    assert complete


@pytest.mark.parametrize("asked_for", [b"true", b"false", b"null", b'"true"', b"1"])
async def test_what_the_engine_sends_decides_what_it_is(asked_for: bytes) -> None:
    """A stream is one by its content type, whatever the caller wrote into `stream`."""
    request = request_bytes(body=b'{"stream":%b}' % asked_for)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if len(exchange.server.requests) > 1:
            exchange.json({"choices": []})
            return
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        stream, stream_complete = await proxy.asked(request)
        ordinary, ordinary_complete = await proxy.asked(request)

    assert judge(CHAT, stream.body).error is not None
    assert not stream_complete
    assert ordinary.body == b'{"choices":[]}'
    assert ordinary_complete
