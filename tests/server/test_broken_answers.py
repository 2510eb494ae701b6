"""An answer that its app did not finish never looks like a finished one."""

import logging

import pytest

from llmproxy.types import Message, Receive, Scope, Send
from tests.server.apps import GET, OLD, POST, asking, body, saying, start

SECRET = "c4n4ry"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A failing app is logged with its traceback."""
    caplog.set_level(logging.CRITICAL, logger="llmproxy.server")


async def test_a_truncated_answer_to_http_1_0_ends_in_a_reset() -> None:
    """Or it would look complete."""
    async with asking(saying(start(), body(b"a", more=True), RuntimeError(SECRET))) as client:
        client.send(OLD)
        await client.head()
        await client.rest()

    assert client.was_reset


async def test_a_truncated_chunked_answer_lacks_its_last_chunk() -> None:
    """What was said arrives, and then the connection ends."""
    async with asking(saying(start(), body(b"a", more=True), RuntimeError(SECRET))) as client:
        client.send(GET)
        answer = await client.answer()
        await client.closed()

    assert answer.body == b"a"
    assert not client.complete
    assert not client.was_reset


async def test_half_a_close_on_http_1_0_is_no_whole_answer() -> None:
    """The client hung up before the end; what it has must not look like all of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        while (await receive())["type"] != "http.disconnect":
            pass

    async with asking(app) as client:
        client.send(OLD)
        await client.head()
        await client.anything()
        client.half_close()
        await client.closed()

    assert client.was_reset


@pytest.mark.parametrize("request_", [GET, POST, OLD], ids=["get", "post", "old"])
@pytest.mark.parametrize(
    "messages",
    [
        [RuntimeError(SECRET)],
        [start(), RuntimeError(SECRET)],
        [],
        [start()],
        [body(b"a")],
        [start(200, (b"x", b"a\r\nb: c")), body(b"a")],
        [start(200, (b"x", b"a\nb")), body(b"a")],
        [start(200, (b"x", b"a\0b")), body(b"a")],
        [start(200, (b"x\r\ny", b"a")), body(b"a")],
        [start(200, (b"content-length", b"x")), body(b"a")],
        [start(200, (b"content-length", b"-1")), body(b"a")],
        [start(200, (b"content-length", b"1"), (b"content-length", b"1")), body(b"a")],
        [start(200, (b"content-length", b"5")), body(b"a")],
        [start(200, (b"content-length", b"5")), body(b"abcdefg")],
        [start(), start()],
    ],
    ids=[
        "raises",
        "raises_after_its_head",
        "says_nothing",
        "stops_after_its_head",
        "begins_with_a_body",
        "a_header_in_a_header",
        "a_line_feed_in_a_header",
        "a_null_in_a_header",
        "a_line_end_in_a_name",
        "a_length_that_is_none",
        "a_negative_length",
        "two_lengths",
        "too_short",
        "too_long",
        "begins_twice",
    ],
)
async def test_an_app_that_fails_before_its_first_byte_is_a_500(
    messages: list[Message | Exception], request_: bytes
) -> None:
    """The client learns that, and nothing more; the connection ends."""
    async with asking(saying(*messages)) as client:
        client.send(request_)
        answer = await client.answer()
        rest = await client.rest()

    assert answer.status == 500
    assert answer.header(b"connection") == b"close"
    assert b'"code":"internal_error"' in answer.body
    assert rest == b""
    assert SECRET.encode() not in answer.raw + answer.body


async def test_a_counted_answer_that_stops_early_is_cut() -> None:
    """Its length tells."""
    short = saying(start(200, (b"content-length", b"5")), body(b"ab", more=True), RuntimeError())
    async with asking(short) as client:
        client.send(GET)
        answer = await client.answer()
        await client.closed()

    assert answer.body == b"ab"
    assert not client.complete


async def test_bytes_beyond_the_length_are_not_sent() -> None:
    """They would be read as the next answer."""
    long = saying(
        start(200, (b"content-length", b"2")), body(b"ab", more=True), body(b"HTTP/1.1 200 OK")
    )
    async with asking(long) as client:
        client.send(GET)
        await client.head()
        rest = await client.rest()

    assert rest == b"ab"
