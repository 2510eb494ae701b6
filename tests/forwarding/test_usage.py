"""The engine is asked to count, the caller gets the stream as it would have been."""

import json

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import Exchange, chat_events, scripted, sse_answer

WORDS = chat_events(["Hel", "lo", "!"])
COUNT = (
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":30,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":16}}}\n\n'
)
COUNTED = [*WORDS[:-1], COUNT, WORDS[-1]]
ASKED = request_bytes(body=b'{"model":"m","stream":true,"messages":[]}')
ONCE = b'"stream_options":{"include_usage":true}'
LIMITS = "1000000 tok/min per ip"  # whoever limits tokens wants them counted


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
async def test_a_stream_is_counted_by_the_engine(size: int) -> None:
    """Wherever the network cuts it; log and metrics know what the client was not shown."""
    stream = b"".join(COUNTED)
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    async with (
        scripted(sse_answer(pieces)) as engine,
        proxied(engine.upstream, limits=LIMITS) as proxy,
    ):
        answer, complete = await proxy.asked(ASKED)
        line = await proxy.log.line()

        assert proxy.sample("tokens_total", model="m", kind="prompt") == 30
        assert proxy.sample("tokens_total", model="m", kind="completion") == 3
        assert proxy.sample("tokens_total", model="m", kind="cached") == 16
    assert complete
    assert answer.body == b"".join(WORDS)
    body = engine.requests[0].body
    assert body == b"{" + ONCE + b',"model":"m","stream":true,"messages":[]}'
    assert engine.requests[0].header(b"content-length") == b"%d" % len(body)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (30, 3)
    assert line["tokens_estimated"] is None
    assert line["bytes"] == len(answer.body)


async def test_whoever_asks_for_the_count_gets_it() -> None:
    """Nothing is changed, neither on the way there nor on the way back."""
    body = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    async with (
        scripted(sse_answer(COUNTED)) as engine,
        proxied(engine.upstream, limits=LIMITS) as proxy,
    ):
        answer = await proxy.ask(request_bytes(body=body))

    assert engine.requests[0].body == body
    assert answer.body == b"".join(COUNTED)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked_for", "not_asked_for"])
async def test_a_count_without_its_empty_line_counts(asked: bool, end: bytes) -> None:
    """It ends the stream, with no [DONE] behind it; the answer was finished before."""
    stream = [*WORDS[:-1], COUNT.rstrip() + end]
    body = b'{"model":"m","stream":true,%b"messages":[]}' % (ONCE + b"," if asked else b"")
    async with (
        scripted(sse_answer(stream)) as engine,
        proxied(engine.upstream, limits=LIMITS) as proxy,
    ):
        answer, complete = await proxy.asked(request_bytes(body=body))
        line = await proxy.log.line()

        assert proxy.sample("tokens_total", model="m", kind="prompt") == 30
    assert complete
    assert answer.body == b"".join(stream if asked else WORDS[:-1])
    assert (line["outcome"], line["code"]) == ("completed", None)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (30, 3)


async def test_nobody_wants_to_know() -> None:
    """Without limits, budgets or a ledger the caller's bytes go out as they came."""
    async with scripted(sse_answer(COUNTED)) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(ASKED)

    assert ONCE not in engine.requests[0].body
    assert answer.body == b"".join(COUNTED)


async def test_an_engine_that_refuses_the_option_is_asked_again_once() -> None:
    """On behalf of a caller who sees a plain stream; from then on it is left in peace."""

    async def old_engine(exchange: Exchange) -> None:
        request = await exchange.request()
        if b"stream_options" in request.body:
            detail = [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]
            exchange.json({"detail": detail}, b"422 Unprocessable Entity")
            return
        exchange.begin()
        for event in WORDS:
            exchange.chunk(event)
        exchange.end()

    async with scripted(old_engine) as engine, proxied(engine.upstream, limits=LIMITS) as proxy:
        first = await proxy.ask(ASKED)
        second = await proxy.ask(ASKED)
        lines = [await proxy.log.line(1), await proxy.log.line(2)]

    assert [ONCE in request.body for request in engine.requests] == [True, False, False]
    assert first.status == second.status == 200
    assert first.body == second.body == b"".join(WORDS)
    assert [line["attempts"] for line in lines] == [2, 1]
    assert [line["completion_tokens"] for line in lines] == [3, 3]
    assert all(line["tokens_estimated"] for line in lines)


async def test_a_stream_that_breaks_is_told_so() -> None:
    """Half an event that was held back does not spoil the error event."""

    async def breaking(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(WORDS[0])
        exchange.chunk(b'data: {"id":"chatcmpl-1","obj')
        exchange.close()

    async with scripted(breaking) as engine, proxied(engine.upstream, limits=LIMITS) as proxy:
        answer, complete = await proxy.asked(ASKED)
        line = await proxy.log.line()

    assert not complete
    events = [part for part in answer.body.split(b"\n\n") if part.strip()]
    assert events[0] + b"\n\n" == WORDS[0]
    assert [json.loads(each.removeprefix(b"data: "))["error"]["code"] for each in events[1:]] == [
        "upstream_error"
    ]
    assert line["completion_tokens"] == 1


async def test_an_answer_in_one_piece_is_counted_too() -> None:
    """Its length stays, for nothing is taken out of it."""
    said = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 3}}

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.json(said)

    async with scripted(script) as engine, proxied(engine.upstream, limits=LIMITS) as proxy:
        answer = await proxy.ask(request_bytes(body=b'{"model":"m"}'))
        line = await proxy.log.line()

    assert engine.requests[0].body == b'{"model":"m"}'
    assert json.loads(answer.body) == said
    assert answer.header(b"content-length") == b"%d" % len(answer.body)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (30, 3)
