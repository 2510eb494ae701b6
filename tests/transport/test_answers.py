"""Answers that are delimited in every way there is, and what a request looks like on the wire."""

import pytest

from llmproxy.errors import ProxyError, UpstreamBroken
from llmproxy.transport import Outgoing
from llmproxy.transport.connect import Kind
from tests.support.calls import GET, HEAD, HOST, ask, body_of, fetch, post, reads, settle
from tests.support.upstream import Exchange, answering, in_turn, json_answer, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect, only_http1

OK = b"HTTP/1.1 200 OK\r\n"
COUNTED = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"

ANSWERS = [
    pytest.param(GET, COUNTED, 200, b"hello", id="counted"),
    pytest.param(GET, OK + b"content-length: 0\r\n\r\n", 200, b"", id="counted_empty"),
    pytest.param(GET, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", 200, b"hello", id="chunked"),
    pytest.param(
        GET, CHUNKED + b"2\r\nhe\r\n0003\r\nllo\r\n0\r\n\r\n", 200, b"hello", id="chunks"
    ),
    pytest.param(
        GET, CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789" * 2,
        id="chunk_sizes_in_hexadecimal",
    ),
    pytest.param(
        GET, CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', 200, b"hello", id="chunk_extensions"
    ),
    pytest.param(GET, CHUNKED + b"0\r\n\r\n", 200, b"", id="chunked_empty"),
    pytest.param(
        GET, CHUNKED + b"5\r\nhello\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n", 200, b"hello",
        id="trailers",
    ),
    pytest.param(
        GET, OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, b"hello",
        id="chunked_in_capitals",
    ),
    pytest.param(HEAD, OK + b"content-length: 5\r\n\r\n", 200, b"", id="head_counted"),
    pytest.param(HEAD, CHUNKED, 200, b"", id="head_chunked"),
    pytest.param(HEAD, OK + b"\r\n", 200, b"", id="head_without_framing"),
    pytest.param(GET, b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", id="204"),
    pytest.param(GET, b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\n", 204, b"", id="204_counted"),
    pytest.param(GET, b"HTTP/1.1 304 Not\r\n\r\n", 304, b"", id="304"),
    pytest.param(GET, b"HTTP/1.1 304 Not\r\ncontent-length: 5\r\n\r\n", 304, b"", id="304_counted"),
    pytest.param(GET, b"HTTP/1.1 100 Continue\r\n\r\n" + COUNTED, 200, b"hello", id="100_first"),
    pytest.param(
        GET, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + COUNTED, 200, b"hello",
        id="103_first",
    ),
    pytest.param(GET, b"HTTP/1.1 102 P\r\n\r\n" * 5 + COUNTED, 200, b"hello", id="five_102_first"),
    pytest.param(
        GET, b"HTTP/1.1 103 E\r\ncontent-length: 9\r\n\r\n" + COUNTED, 200, b"hello",
        id="counted_103_first",
    ),
    pytest.param(GET, b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello", id="bare"),
    pytest.param(GET, b"HTTP/1.1 599 X\r\ncontent-length: 1\r\n\r\nx", 599, b"x", id="599"),
    pytest.param(GET, b"HTTP/1.1 302 F\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", 302, b"",
                 id="redirect_is_not_followed"),
]  # fmt: skip


@pytest.mark.parametrize(("outgoing", "answer", "status", "body"), ANSWERS)
async def test_an_answer_is_read_to_its_end(
    connect: Connect, kind: Kind, outgoing: Outgoing, answer: bytes, status: int, body: bytes
) -> None:
    """However it is delimited: all of it, nothing behind it, and the connection is good again."""
    async with scripted(answering(answer)) as server:
        transport = connect(server)
        first = await ask(transport, outgoing)
        first_body = await body_of(first)
        first.close()
        await settle()
        second = await ask(transport, outgoing)
        second_body = await body_of(second)
        second.close()

    assert (first.status, first_body) == (second.status, second_body) == (status, body)
    assert not first.reused
    assert second.reused is (kind == "http1")  # httpx uses each connection once
    assert server.accepted == (1 if second.reused else 2)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(OK + b"\r\n", id="without_framing"),
        pytest.param(OK + b"connection: close\r\n\r\n", id="announced"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="http_1_0"),
    ],
)
async def test_an_answer_may_end_with_its_connection(connect: Connect, head: bytes) -> None:
    """The body is what came before the close, and the close is no fault."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(head + b"hel")
        exchange.send(b"lo")
        exchange.close()

    async with scripted(script) as server:
        transport = connect(server)

        assert await fetch(transport) == (200, b"hello")
        assert await fetch(transport) == (200, b"hello")

    assert server.accepted == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", id="close"),
        pytest.param(OK + b"Connection: Close\r\ncontent-length: 5\r\n\r\nhello", id="capitals"),
        pytest.param(
            OK + b"connection: a, close\r\ncontent-length: 5\r\n\r\nhello", id="in_a_list"
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", id="http_1_0"),
        pytest.param(
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            id="http_1_0_chunked",
        ),
    ],
)
async def test_a_connection_that_is_said_to_close_is_not_used_again(
    connect: Connect, answer: bytes
) -> None:
    """A server that says so means it, although it may take its time."""
    async with scripted(answering(answer)) as server:
        transport = connect(server)

        assert await fetch(transport) == (200, b"hello")
        assert await fetch(transport) == (200, b"hello")
        await server.exchanges[0].closed()

    assert server.accepted == 2


async def test_headers_come_as_they_were_sent(connect: Connect) -> None:
    """In their order, doubled where they were, with small letters in the names alone."""
    head = (
        b"Set-Cookie: A=1\r\nX-Empty:\r\nX-Blank:  a  b\r\nSET-COOKIE: B=2\r\nx-high: caf\xe9\r\n"
    )

    async with scripted(answering(OK + head + b"Content-Length: 0\r\n\r\n")) as server:
        call = await ask(connect(server))
        call.close()

    assert call.headers == [
        (b"set-cookie", b"A=1"),
        (b"x-empty", b""),
        (b"x-blank", b"a  b"),
        (b"set-cookie", b"B=2"),
        (b"x-high", b"caf\xe9"),
        (b"content-length", b"0"),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"content-length: 5 \r\n\r\nhello", id="length"),
        pytest.param(OK + b"content-length:\t5\t\r\n\r\nhello", id="length_between_tabs"),
        pytest.param(
            OK + b"transfer-encoding: chunked \r\n\r\n5\r\nhello\r\n0\r\n\r\n", id="coding"
        ),
        pytest.param(OK + b"x: a \r\ncontent-length: 5\r\n\r\nhello", id="any_header"),
    ],
)
async def test_blanks_around_a_value_are_not_part_of_it(connect: Connect, answer: bytes) -> None:
    """RFC 9110 section 5.5 allows them on both sides."""
    async with scripted(answering(answer)) as server:
        call = await ask(connect(server))

        assert await body_of(call) == b"hello"
        assert all(value == value.strip() for _, value in call.headers)


async def test_only_the_final_head_counts(connect: Connect) -> None:
    """Headers of informational answers and trailers never become headers of the answer."""
    answer = (
        b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"
        + CHUNKED.replace(b"\r\n\r\n", b"\r\nx-head: 1\r\n\r\n")
        + b"5\r\nhello\r\n0\r\nx-trailer: 1\r\nauthorization: Bearer k\r\n\r\n"
    )

    async with scripted(answering(answer)) as server:
        call = await ask(connect(server))
        body = await body_of(call)
        call.close()

    assert body == b"hello"
    assert call.headers == [(b"transfer-encoding", b"chunked"), (b"x-head", b"1")]


async def test_an_answer_is_over_when_its_last_byte_is_out(connect: Connect) -> None:
    """Not before, and asking on after it brings nothing and does no harm."""
    async with scripted(answering(COUNTED)) as server:
        call = await ask(connect(server))
        before = call.over
        parts = await reads(call)

        assert not before
        assert b"".join(parts) == b"hello"
        assert call.over
        assert await call.read(PATIENCE) == b""
        call.close()
        call.close()
        assert await call.read(PATIENCE) == b""


@only_http1("httpx learns of the end by asking once more")
@pytest.mark.parametrize(
    "answer",
    [COUNTED, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"],
    ids=["counted", "chunked"],
)
async def test_an_end_that_came_along_is_known_at_once(connect: Connect, answer: bytes) -> None:
    """Whoever relays the last chunk can say with it that it was the last."""
    async with scripted(answering(answer)) as server:
        call = await ask(connect(server))

        assert await call.read(PATIENCE) == b"hello"
        assert call.over


@only_http1("httpx learns of the end by asking once more")
async def test_an_answer_without_a_body_is_over_from_the_start(connect: Connect) -> None:
    """Nothing is to come, and the connection is free before anybody has asked."""
    async with scripted(answering(OK + b"content-length: 5\r\n\r\n")) as server:
        transport = connect(server)
        call = await ask(transport, HEAD)

        assert call.over
        assert transport.statistics() == {"open": 1, "idle": 1, "waiting": 0}


async def test_101_was_not_asked_for(connect: Connect) -> None:
    """A server that switches protocols has misunderstood us; nobody gets a tunnel."""
    switching = answering(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")

    async with scripted(in_turn(switching, json_answer({}))) as server:
        transport = connect(server)
        with pytest.raises(UpstreamBroken):
            await ask(transport)
        await server.exchanges[0].closed()

        assert await fetch(transport) == (200, b"{}")

    assert server.exchanges[0].number == 1


@pytest.mark.parametrize(
    ("outgoing", "head", "body"),
    [
        pytest.param(GET, b"GET /v1/models HTTP/1.1\r\nhost: engine.test\r\n\r\n", b"", id="get"),
        pytest.param(
            HEAD, b"HEAD /v1/models HTTP/1.1\r\nhost: engine.test\r\n\r\n", b"", id="head"
        ),
        pytest.param(
            Outgoing(b"DELETE", b"/v1/files/a%20b?x=%2F&y", HOST),
            b"DELETE /v1/files/a%20b?x=%2F&y HTTP/1.1\r\nhost: engine.test\r\n\r\n",
            b"",
            id="target_as_it_is",
        ),
        pytest.param(
            post(b"{}", headers=[(b"x-b", b"2"), (b"x-a", b"1"), (b"x-b", b"3")]),
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine.test\r\n"
            b"x-b: 2\r\nx-a: 1\r\nx-b: 3\r\ncontent-length: 2\r\n\r\n",
            b"{}",
            id="post",
        ),
        pytest.param(
            post(b""),
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine.test\r\ncontent-length: 0\r\n\r\n",
            b"",
            id="post_of_nothing",
        ),
        pytest.param(
            Outgoing(b"DELETE", b"/v1/x", HOST, b"{}"),
            b"DELETE /v1/x HTTP/1.1\r\nhost: engine.test\r\ncontent-length: 2\r\n\r\n",
            b"{}",
            id="delete_with_a_body",
        ),
    ],
)
async def test_a_request_is_what_was_asked_for(
    connect: Connect, outgoing: Outgoing, head: bytes, body: bytes
) -> None:
    """Not a header more than was given, but for the framing of the body."""
    async with scripted(json_answer({})) as server:
        await fetch(connect(server), outgoing)

    assert server.requests[0].raw.lower() == head.lower()
    assert server.requests[0].body == body


async def test_a_large_request_arrives_whole(connect: Connect) -> None:
    """More than any buffer on the way holds."""
    body = bytes(range(256)) * (4 << 12)

    async with scripted(json_answer({})) as server:
        await fetch(connect(server), post(body))

    assert server.requests[0].body == body


@pytest.mark.parametrize(
    "outgoing",
    [
        pytest.param(Outgoing(b"GET", b"/a\r\nx: y", HOST), id="line_in_the_target"),
        pytest.param(Outgoing(b"GET", b"/a b", HOST), id="blank_in_the_target"),
        pytest.param(Outgoing(b"GET", b"/", [*HOST, (b"a", b"b\r\nc: d")]), id="line_in_a_value"),
        pytest.param(Outgoing(b"GET", b"/", [*HOST, (b"a", b"b\nc: d")]), id="lf_in_a_value"),
        pytest.param(Outgoing(b"GET", b"/", [*HOST, (b"a", b"b\rc: d")]), id="cr_in_a_value"),
        pytest.param(Outgoing(b"GET", b"/", [*HOST, (b"a", b"b\x00")]), id="nul_in_a_value"),
        pytest.param(Outgoing(b"GET", b"/", [*HOST, (b"a: b\r\nc", b"d")]), id="line_in_a_name"),
        pytest.param(Outgoing(b"GET\r\n\r\nGET", b"/", HOST), id="line_in_the_method"),
    ],
)
async def test_a_second_request_cannot_be_written_into_the_first(
    connect: Connect, outgoing: Outgoing
) -> None:
    """It is refused before a byte of it has gone out, and nothing is left open."""
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        with pytest.raises(ProxyError):
            await ask(transport, outgoing)

        assert not server.requests
        assert await fetch(transport) == (200, b"{}")
