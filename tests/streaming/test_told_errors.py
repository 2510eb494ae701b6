"""After an engine's own error nothing follows, and nobody calls it a success."""

import asyncio
import json

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT, judge
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PeerLeft

DONE = b"data: [DONE]\n\n"
TOKEN = CHAT.events[1]
STOP = CHAT.terminal[0]
ERROR = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
OLDER = b'data: {"object":"error","message":"out of memory","code":500}\n\n'  # vLLM before 2025
NAMED = b'event: error\ndata: {"message":"out of memory"}\n\n'
PING = b": ping\n\n"


@pytest.mark.parametrize("asked", [{}, {"n": 2}], ids=["one", "several"])
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([TOKEN, ERROR, DONE], id="apart"),
        pytest.param([TOKEN, ERROR + DONE], id="together"),
        pytest.param([TOKEN + ERROR + DONE], id="all_at_once"),
        pytest.param([ERROR, DONE], id="at_the_beginning"),
        pytest.param([TOKEN, ERROR[:20], ERROR[20:] + DONE], id="an_error_in_two_parts"),
        pytest.param([TOKEN, ERROR, DONE[:9], DONE[9:]], id="done_in_two_parts"),
        pytest.param([TOKEN, ERROR, PING, DONE], id="a_comment_between"),
        pytest.param([TOKEN, ERROR, TOKEN, DONE], id="a_token_between"),
        pytest.param([TOKEN, ERROR, STOP, DONE], id="a_finish_between"),
        pytest.param([TOKEN, STOP, ERROR, DONE], id="after_a_finish"),
        pytest.param([TOKEN, STOP, ERROR], id="after_a_finish_without_done"),
        pytest.param([TOKEN, ERROR, STOP], id="before_a_finish_without_done"),
        pytest.param(
            [each.replace(b"\n", b"\r\n") for each in (TOKEN, ERROR, DONE)], id="crlf_lines"
        ),
        pytest.param([TOKEN, NAMED, DONE], id="named"),
        pytest.param([TOKEN, OLDER, DONE], id="the_older_form"),
        pytest.param([TOKEN, OLDER + DONE], id="the_older_form_together"),
    ],
)
async def test_done_after_an_error_is_no_success(
    pieces: list[bytes], asked: dict[str, object]
) -> None:
    """`[DONE]` is not passed on, the body has no proper end, the books have a broken stream."""
    request = request_bytes(CHAT.path, body=json.dumps({**asked, "stream": True}).encode())
    read = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for piece in pieces[:-1]:
            exchange.chunk(piece)
            await read.acquire()
        exchange.chunk(pieces[-1])
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(request)
            await client.head()
            body = b""
            passed = [b"".join(pieces[:count]) for count in range(1, len(pieces))]
            try:
                async for frame in client.chunks():
                    body += frame
                    if body in passed:
                        read.release()
            except PeerLeft:
                pass
        line = await proxy.log.line()
        failed = proxy.sample("upstream_attempts_total", upstream="engine", result="upstream_error")

    assert b"[DONE]" not in body
    assert b"out of memory" in body
    assert judge(CHAT, body.replace(b"\r\n", b"\n")).error is not None
    assert not client.complete
    assert line["outcome"] == "stream_broken"
    assert line["code"] == "upstream_error"
    assert failed == 1


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(b'data: {"error":null,"choices":[{"index":0,"delta":{}}]}\n\n', id="null"),
        pytest.param(
            b'data: {"choices":[{"delta":{"content":"\\ndata: {\\"error\\":{}}"}}]}\n\n', id="text"
        ),
        pytest.param(b'data: {"choices":[],"object":"errors"}\n\n', id="another_word"),
        pytest.param(b": error\n\n", id="comment"),
    ],
)
async def test_what_is_no_error_ends_nothing(event: bytes) -> None:
    """Only an event that is an error is one; a model may speak of them."""
    stream = [TOKEN, event, STOP + DONE]

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for each in stream:
            exchange.chunk(each)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(CHAT.request)
        line = await proxy.log.line()

    assert answer.body == b"".join(stream)
    assert complete
    assert line["outcome"] == "completed"
