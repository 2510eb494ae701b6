"""Failures after something has gone out already: a head, a comment, half an event."""

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from llmproxy.protocol.comments import KEEP_ALIVE
from tests.support.client import request_bytes
from tests.support.fleet import (
    DONE,
    Answering,
    Member,
    asked_for,
    breaking,
    dropping,
    event,
    failing,
    fleet,
    speaking,
    text_of,
)
from tests.support.outside import (
    BEGUN,
    TEXT,
    at_rest,
    chat,
    error_of,
    half_open,
    in_order,
    said,
    server_named,
    until,
)
from tests.support.streams import MESSAGES, RESPONSES, Dialect, judge
from tests.support.upstream import Exchange, Request

SOON = 0.05  # seconds after which a silent stream gets a comment


def _after_a_comment(then: Callable[[Exchange], None]) -> Answering:
    """Begin a stream, say nothing until the client has a comment of the proxy, and fail."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        await asyncio.sleep(10 * SOON)  # longer than the proxy leaves a client in silence
        then(exchange)
        await exchange.closed()

    return answer


def _resets(exchange: Exchange) -> None:
    exchange.reset()


def _says_error(exchange: Exchange) -> None:
    exchange.chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
    exchange.close()


@pytest.mark.parametrize("then", [_resets, _says_error])
async def test_a_comment_does_not_bind_to_a_server(then: Callable[[Exchange], None]) -> None:
    """The head is out; the stream of the next server flows on behind it, as if nothing was."""
    async with fleet(_after_a_comment(then), speaking(TEXT), keepalive_comments=SOON) as (
        proxy,
        (a, b),
    ):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert answer.body.startswith(KEEP_ALIVE)
        assert text_of(answer.body) == TEXT
        assert answer.body.count(DONE) == 1
        assert b'"error"' not in answer.body
        assert (len(a.asked), len(b.asked)) == (1, 1)
        await at_rest(proxy)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(failing(b"500 Internal Server Error"), id="500"),
        pytest.param(failing(b"429 Too Many Requests"), id="429"),
        pytest.param(failing(b"400 Bad Request"), id="400"),
        pytest.param(failing(b"401 Unauthorized"), id="401"),
        pytest.param(dropping, id="reset"),
        pytest.param(breaking("", _says_error), id="error_event"),
        pytest.param(speaking(TEXT), id="json"),
    ],
)
@pytest.mark.parametrize("first", [_resets, _says_error])
async def test_all_fail_after_a_comment(
    first: Callable[[Exchange], None], second: Answering
) -> None:
    """One error event, no [DONE], no proper end: a second head cannot follow the first."""

    async def answered(exchange: Exchange, request: Request) -> None:
        changed = orjson.dumps({**asked_for(request), "stream": False})
        asked = Request(b"POST", b"/", b"", [], b"", bytearray(changed))
        await second(exchange, asked)

    async with fleet(
        in_order(_after_a_comment(first), speaking(TEXT)),
        # A reset of a connection that was used before is tried on a fresh one.
        in_order(answered, *([answered] if second is dropping else []), speaking(TEXT)),
        keepalive_comments=SOON,
        retries=1,
    ) as (proxy, _):
        answer, whole = await proxy.asked(chat(stream=True))

        assert answer.status == 200
        assert not whole
        assert answer.body.count(b'"error"') == 1
        assert error_of(answer)["message"]
        assert DONE not in answer.body
        assert (await proxy.log.line())["outcome"] == "stream_broken"
        await at_rest(proxy)
        assert said(await proxy.ask(chat(stream=True))) == TEXT


FAILED_RESCUES = [
    pytest.param(failing(b"500 Internal Server Error"), id="500"),
    pytest.param(failing(b"400 Bad Request"), id="400"),
    pytest.param(failing(b"429 Too Many Requests"), id="429"),
    pytest.param(dropping, id="reset"),
    pytest.param(breaking("", _says_error), id="error_event"),
    pytest.param(breaking(BEGUN, _says_error), id="error_event_after_the_same"),
    pytest.param(speaking("Something else"), id="differs"),
]


@pytest.mark.parametrize("second", FAILED_RESCUES)
@pytest.mark.parametrize("first", [_resets, _says_error])
async def test_a_rescue_that_fails_ends_in_one_error_event(
    first: Callable[[Exchange], None], second: Answering
) -> None:
    """Whatever the server said that was to go on: the client learns that its stream is over."""
    async with fleet(
        in_order(breaking(BEGUN, first), speaking(TEXT)),
        in_order(second, second, speaking(TEXT)),
    ) as (proxy, _):
        answer, whole = await proxy.asked(chat(stream=True))

        assert not whole
        assert answer.body.count(b'"error"') == 1
        assert error_of(answer)["message"]
        assert DONE not in answer.body
        if first is _says_error:  # the engine's own words go before ours
            assert error_of(answer) == {"message": "out of memory"}
        await at_rest(proxy)


async def test_a_server_that_says_error_is_not_the_last_that_can_go_on() -> None:
    """The third one finishes what the first began and the second could not."""
    async with fleet(breaking(BEGUN, _resets), breaking(BEGUN, _says_error), speaking(TEXT)) as (
        proxy,
        members,
    ):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert text_of(answer.body) == TEXT
        assert [len(each.asked) for each in members] == [1, 1, 1]


@pytest.mark.parametrize(
    ("second", "state"),
    [
        pytest.param(speaking(TEXT), "closed", id="goes_on"),
        pytest.param(failing(b"500 Internal Server Error"), "open", id="500"),
        pytest.param(failing(b"400 Bad Request"), "half-open", id="400"),
        pytest.param(dropping, "open", id="reset"),
        pytest.param(breaking(BEGUN, _resets), "closed", id="breaks_too"),
    ],
)
async def test_a_server_that_is_found_out_about_by_a_rescue(second: Answering, state: str) -> None:
    """Half open means one call, and that call gives its place back, however it ends."""
    async with fleet(breaking(BEGUN, _resets), second) as (proxy, _):
        await proxy.ask(request_bytes(b"/v1/models", method=b"GET", body=None))
        server = server_named(proxy, "b")
        half_open(server)
        await proxy.asked(chat(stream=True))

        await at_rest(proxy)
        assert server.breaker.state == state


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_finds_out_too(stream: bool) -> None:
    """200 without a byte is an answer."""

    async def empty(exchange: Exchange, request: Request) -> None:
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"
        )

    async with fleet(Member(empty), Member(speaking(TEXT), models=("x",))) as (proxy, _):
        await proxy.ask(chat(model="x"))
        server = server_named(proxy, "a")
        half_open(server)
        answer, whole = await proxy.asked(chat(stream=stream))

        assert whole
        assert (answer.status, answer.body) == (200, b"")
        await at_rest(proxy)
        assert server.breaker.state == "closed"


async def test_a_stream_without_its_last_blank_line_finds_out_too() -> None:
    """It is held back until nothing more comes, and an answer all the same."""
    said = event({"content": TEXT}, "stop").rstrip(b"\n") + b"\n"

    async def short(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(said)
        exchange.chunk(b"data: [DONE]\n")
        exchange.end()

    async with fleet(Member(short), Member(speaking(TEXT), models=("x",))) as (proxy, _):
        await proxy.ask(request_bytes(b"/v1/models", method=b"GET", body=None))
        server = server_named(proxy, "a")
        half_open(server)
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert answer.body == said + b"data: [DONE]\n"
        await at_rest(proxy)
        assert server.breaker.state == "closed"


@pytest.mark.parametrize("size", [10, 20_000])
async def test_a_stream_that_is_answered_in_json(size: int) -> None:
    """Passed on as it comes: nothing is held back, nothing is finished by somebody else."""
    first, second = b'{"half": "', b'%b"}' % (b"x" * size)
    go_on = asyncio.Event()

    async def json(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=b"application/json")
        exchange.chunk(first)
        await go_on.wait()
        exchange.chunk(second)
        exchange.end()

    async with fleet(json, speaking(TEXT)) as (proxy, (_, b)), proxy.client() as client:
        client.send(chat(stream=True))
        await client.until(first)
        go_on.set()
        await client.until(second)
        assert not b.asked
        await at_rest(proxy)


@pytest.mark.parametrize("ending", [b"}", b"}\n\n"])
async def test_json_that_breaks_is_not_followed_by_a_stream(ending: bytes) -> None:
    """Two kinds of answers in one are none."""

    async def json(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"half": 1' + ending)
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.reset()

    async with fleet(json, speaking(TEXT)) as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat(stream=True))

        assert not whole
        assert answer.body == b'{"half": 1' + ending
        assert not b.asked
        await at_rest(proxy)


async def test_a_compressed_stream_is_passed_on_as_it_comes() -> None:
    """Nothing can be read in it, so nothing is held back, and it is not finished by another."""
    packer = gzip.compress(b"".join([event({"content": "x" * 300}), DONE]))
    first, second = packer[:20], packer[20:]
    go_on = asyncio.Event()

    async def compressed(exchange: Exchange, request: Request) -> None:
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        exchange.chunk(first)
        await go_on.wait()
        exchange.chunk(second)
        exchange.end()

    async with fleet(compressed, speaking(TEXT)) as (proxy, _), proxy.client() as client:
        client.send(chat(stream=True))
        head = await client.head()
        assert head.header(b"content-encoding") == b"gzip"
        got = b""
        frames = client.chunks()
        while len(got) < len(first):
            got += await anext(frames)
        go_on.set()
        async for frame in frames:
            got += frame
        assert gzip.decompress(got).endswith(DONE)
        assert client.complete
        await at_rest(proxy)


@pytest.mark.parametrize("dialect", [MESSAGES, RESPONSES], ids=lambda each: each.name)
async def test_streams_of_other_kinds_end_in_their_own_error(dialect: Dialect) -> None:
    """They are not finished by another server; nobody is asked."""

    async def breaks(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        for each in dialect.events:
            exchange.chunk(each)
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.reset()

    async with fleet(breaks, breaks) as (proxy, members):
        answer, whole = await proxy.asked(dialect.request)

        assert not whole
        assert answer.body.startswith(b"".join(dialect.events))
        verdict = judge(dialect, answer.body)
        assert verdict.error is not None
        assert not verdict.complete
        assert sum(len(each.asked) for each in members) == 1
        await at_rest(proxy)


async def test_usage_that_the_caller_did_not_ask_for_stays_out_of_a_rescued_stream() -> None:
    """Also when the second server sends it in the middle of a read, and with the end."""
    usage = {"prompt_tokens": 14, "completion_tokens": 5, "total_tokens": 19}

    async def going_on(exchange: Exchange, request: Request) -> None:
        assert asked_for(request)["stream_options"] == {"include_usage": True}
        about = {"id": "x", "choices": [], "usage": usage}
        exchange.begin()
        last = b"data: %b\n\n" % orjson.dumps(about)
        rest = event({"content": TEXT[len(BEGUN) :]}), event({}, "stop"), last, DONE
        exchange.chunk(b"".join(rest))
        exchange.end()

    async with fleet(
        breaking(BEGUN, _resets), going_on, preset="vllm", middleware="rate_limit,routing",
        limits="100000 tok/min",
    ) as (proxy, _):  # fmt: skip
        answer, whole = await proxy.asked(chat(stream=True))
        line = await proxy.log.line()

        assert whole
        assert text_of(answer.body) == TEXT
        assert b'"usage":{' not in answer.body
        # What the client has of the first server was counted as part of the second's prompt.
        assert (line["prompt_tokens"], line["completion_tokens"]) == (10, 9)
        assert proxy.sample("tokens_total", model="m", kind="completion") == 9


@pytest.mark.parametrize(
    "option",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_json": {}},
        {"structured_outputs": {"json": {}}},
        {"tools": [{"type": "function"}], "tool_choice": "required"},
    ],
)
async def test_what_is_held_to_a_grammar_is_asked_again_from_the_beginning(
    option: dict[str, Any],
) -> None:
    """An engine that continues a text begins its grammar anew: the sum would not follow it."""

    async def strict(exchange: Exchange, request: Request) -> None:
        assert asked_for(request)["messages"][-1]["role"] == "user"
        await speaking(TEXT)(exchange, request)

    async with fleet(breaking(BEGUN, _resets), strict, preset="vllm") as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat(stream=True, **option))

        assert whole
        assert text_of(answer.body) == TEXT
        assert len(b.asked) == 1


async def test_time_to_first_token_is_that_of_the_answer() -> None:
    """And not of the error before it."""
    go_on = asyncio.Event()

    async def later(exchange: Exchange, request: Request) -> None:
        await go_on.wait()
        await speaking(TEXT)(exchange, request)

    async with fleet(failing(b"500 Internal Server Error"), later) as (proxy, (_, b)):
        asking = asyncio.create_task(proxy.ask(chat(stream=True)))
        await until(lambda: b.asked, "the second was asked")
        await asyncio.sleep(0.1)
        go_on.set()
        await asking
        first_token = (await proxy.log.line())["first_token_ms"]
        assert isinstance(first_token, float)
        assert first_token >= 100
