"""Until the first byte of a body nothing is promised; after it, everything is."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT, KNOWN, Dialect
from tests.support.upstream import Exchange, ScriptedServer, scripted

Fault = Callable[[Exchange], Awaitable[None]]


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def hang_up(exchange: Exchange) -> None:
    exchange.close()


async def end(exchange: Exchange) -> None:
    exchange.end()


async def garbage(exchange: Exchange) -> None:
    exchange.send(b"zz\r\n")


def upstream_of(dialect: Dialect, engine: ScriptedServer) -> str:
    return f"engine={dialect.preset}://127.0.0.1:{engine.address[1]}"


@pytest.mark.parametrize("dialect", KNOWN, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("fault", [reset, hang_up, end, garbage], ids=lambda f: f.__name__)
async def test_a_stream_that_breaks_before_its_first_byte_is_a_clean_error(
    dialect: Dialect, fault: Fault
) -> None:
    """The head of a stream was there, nothing of it was passed on: the caller gets a status."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=dialect.content_type)
        await asyncio.sleep(0.01)  # so that the head is read by itself
        await fault(exchange)

    async with scripted(script) as engine, proxied(upstream_of(dialect, engine)) as proxy:
        answer, complete = await proxy.asked(dialect.request)
        line = await proxy.log.line()

    assert answer.status == 502
    assert json.loads(answer.body)["error"]["code"] == "upstream_error"
    assert answer.header(b"content-type") == b"application/json"
    assert complete
    assert line["outcome"] == "upstream_failed"


async def test_an_engine_that_only_sends_a_head_is_cut() -> None:
    """The clock of the first byte counts to the first byte, not to the head."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(1.4)
        exchange.begin()
        await exchange.closed()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, timeout_first_byte=1.5) as proxy,
    ):
        answer = await proxy.ask(CHAT.request)
        line = await proxy.log.line()
        await engine.abandoned()

    assert answer.status == 504
    assert json.loads(answer.body)["error"]["code"] == "upstream_timeout"
    assert 1490 <= line["duration_ms"] < 2890  # not counted anew from the head


async def test_nothing_is_sent_before_the_first_byte() -> None:
    """The caller's head comes with the first token, not with the engine's head."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        await go_on.wait()
        exchange.chunk(CHAT.whole)
        exchange.end()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        await (await engine.reached()).sent()
        await asyncio.sleep(0.05)
        before = bytes(client.unread)
        go_on.set()
        answer = await client.answer()

    assert before == b""
    assert answer.body == CHAT.whole


async def test_silence_between_tokens_is_cut_at_the_idle_limit() -> None:
    """Each byte of the engine starts its clock anew; the last one is not renewed."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for event in CHAT.events:
            exchange.chunk(event)
            await asyncio.sleep(0.4)
        await exchange.closed()

    async with scripted(script) as engine, proxied(engine.upstream, timeout_idle=1.0) as proxy:
        answer, complete = await proxy.asked(CHAT.request)
        line = await proxy.log.line()
        await engine.abandoned()

    assert answer.body.startswith(b"".join(CHAT.events))
    assert b'"code":"upstream_timeout"' in answer.body
    assert not complete
    assert line["duration_ms"] >= 1700


async def test_silence_in_an_ordinary_answer_is_cut_as_well() -> None:
    """JSON that stops half way holds its caller no longer than a stream does."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"choices":')
        await exchange.closed()

    async with scripted(script) as engine, proxied(engine.upstream, timeout_idle=0.1) as proxy:
        answer, complete = await proxy.asked(request_bytes())
        await engine.abandoned()

    assert answer.body == b'{"choices":'
    assert not complete


async def test_clocks_that_are_off_never_run_out() -> None:
    """0 is for ever: the slowest of engines gets to its end."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await asyncio.sleep(0.1)
        exchange.begin()
        await asyncio.sleep(0.1)
        for event in CHAT.events:
            exchange.chunk(event)
            await asyncio.sleep(0.05)
        exchange.chunk(b"".join(CHAT.terminal))
        exchange.end()

    off = {
        "timeout_connect": 0,
        "timeout_first_byte": 0,
        "timeout_answer": 0,
        "timeout_idle": 0,
        "timeout_total": 0,
        "timeout_body": 0,
        "timeout_write": 0,
        "keepalive_comments": 0,
    }
    async with scripted(script) as engine, proxied(engine.upstream, **off) as proxy:
        answer, complete = await proxy.asked(CHAT.request)

    assert answer.body == CHAT.whole
    assert complete


async def test_a_flood_does_not_outrun_the_clock_of_the_request() -> None:
    """An engine that is never silent is still cut when the time is over."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(CHAT.events[0] * 100)
            await asyncio.sleep(0)
            await exchange.sent()

    async with scripted(script) as engine, proxied(engine.upstream, timeout_total=0.2) as proxy:
        async with proxy.client() as client:
            client.keep_reads = False
            client.send(CHAT.request)
            await client.head()
            last = b""
            while part := await client.some():
                last = (last + part)[-400:]
        line = await proxy.log.line()
        await engine.abandoned()

    assert b'"code":"upstream_timeout"' in last
    assert not last.endswith(b"0\r\n\r\n")
    assert line["duration_ms"] < 5000
