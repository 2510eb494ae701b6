"""What an app says becomes an HTTP answer, or an honest end of the connection."""

import pytest

from tests.server.apps import GET, HEAD, OLD, asking, body, hello, saying, start
from tests.support.wire import PeerLeft

WAITING = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"


async def test_an_answer_has_a_date_and_no_server() -> None:
    """What we are is nobody's business."""
    async with asking(hello()) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.version == b"HTTP/1.1"
    assert (answer.header(b"date") or b"").endswith(b" GMT")
    assert answer.header(b"server") is None
    assert answer.header(b"connection") is None
    assert answer.body == b"hello"


async def test_head_and_first_bytes_are_one_write() -> None:
    """A small answer is one packet."""
    async with asking(hello()) as client:
        client.send(GET)
        await client.answer()

    assert len(client.reads) == 1


async def test_a_body_without_a_length_is_chunked() -> None:
    """Each message is a chunk; the last one ends the answer."""
    async with asking(saying(start(), body(b"a", more=True), body(b"bc"))) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.header(b"transfer-encoding") == b"chunked"
    assert client.frames == [b"a", b"bc"]
    assert client.complete


async def test_an_empty_message_is_no_end() -> None:
    """A chunk of nothing would be read as the last."""
    messages = [start(), body(b"a", more=True), body(b"", more=True), body(b"b", more=True), body()]
    async with asking(saying(*messages)) as client:
        client.send(GET)
        await client.answer()

    assert client.frames == [b"a", b"b"]
    assert client.complete


async def test_http_1_0_gets_bytes_and_the_end_of_the_connection() -> None:
    """It knows no chunks."""
    async with asking(saying(start(), body(b"a", more=True), body(b"b"))) as client:
        client.send(OLD)
        answer = await client.head()
        rest = await client.rest()

    assert rest == b"ab"
    assert answer.header(b"transfer-encoding") is None
    assert answer.header(b"connection") == b"close"
    assert not client.was_reset


async def test_an_app_cannot_frame_its_answer_itself() -> None:
    """Connection and Transfer-Encoding are ours, however they are spelled."""
    headers = [(b"Transfer-Encoding", b"gzip"), (b"Connection", b"upgrade"), (b"X-A", b"b")]
    async with asking(saying(start(200, *headers), body(b"a"))) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.header(b"transfer-encoding") == b"chunked"
    assert answer.header(b"connection") is None
    assert answer.header(b"x-a") == b"b"


async def test_a_length_in_capitals_is_a_length() -> None:
    """Never chunked and counted at once."""
    async with asking(saying(start(200, (b"Content-Length", b"1")), body(b"a"))) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.header(b"content-length") == b"1"
    assert answer.header(b"transfer-encoding") is None


async def test_an_app_may_close_the_connection() -> None:
    """By saying so."""
    async with asking(saying(start(200, (b"connection", b"close")), body(b"a"))) as client:
        client.send(GET)
        answer = await client.answer()
        await client.closed()

    assert answer.header(b"connection") == b"close"


async def test_the_answer_to_head_has_no_body() -> None:
    """But its length, and the connection goes on."""
    async with asking(hello()) as client:
        client.send(HEAD)
        answer = await client.answer(to=b"HEAD")
        client.send(GET)
        second = await client.answer()

    assert answer.header(b"content-length") == b"5"
    assert answer.header(b"transfer-encoding") is None
    assert second.body == b"hello"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_no_framing(status: int) -> None:
    """And the next one follows at once."""
    async with asking(saying(start(status), body(b""))) as client:
        client.send(GET)
        answer = await client.answer()
        client.send(GET)
        second = await client.answer()

    assert answer.status == second.status == status
    assert answer.header(b"transfer-encoding") is None
    assert answer.header(b"content-length") is None


async def test_a_204_never_has_a_length() -> None:
    """Some clients would wait for that many bytes."""
    async with asking(saying(start(204, (b"content-length", b"0")), body(b""))) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.header(b"content-length") is None


async def test_a_status_of_its_own_is_passed_on() -> None:
    """Also one without a name."""
    async with asking(saying(start(599, (b"content-length", b"0")), body(b""))) as client:
        client.send(GET)
        answer = await client.answer()

    assert answer.status == 599


async def test_an_early_answer_arrives_although_the_client_is_still_sending() -> None:
    """Our side is closed first, and what still comes is thrown away for a while."""
    app = saying(start(413, (b"content-length", b"5")), body(b"large"), read=False)
    async with asking(app) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        client.send(b"x" * 4_000_000)
        answer = await client.answer()
        await client.closed()

    assert answer.status == 413
    assert answer.header(b"connection") == b"close"
    assert answer.body == b"large"
    assert client.complete
    assert not client.was_reset


async def test_an_answer_is_not_lost_to_what_is_behind_it() -> None:
    """Bytes that we never read must not turn the end into a reset."""
    async with asking(hello()) as client:
        client.send(GET + GET * 4000)
        answer = await client.answer()
        rest = await client.rest()

    assert answer.body == b"hello"
    assert rest == b""
    assert not client.was_reset


async def test_the_scope_says_what_was_asked() -> None:
    """As ASGI has it."""
    app = hello()
    async with asking(app) as client:
        client.send(b"GET /a%20b?c=%20 HTTP/1.1\r\nHost: x\r\nX_Tenant: a\r\nAccept: b \r\n\r\n")
        await client.answer()
        name = client.socket.getsockname()
        peer = client.socket.getpeername()

    scope = app.scopes[0]
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["path"], scope["raw_path"]) == ("/a b", b"/a%20b")
    assert scope["query_string"] == b"c=%20"
    assert scope["headers"] == [(b"host", b"x"), (b"accept", b"b")]
    assert (scope["client"], scope["server"]) == (name, peer)


async def test_only_one_100_is_sent_and_only_when_the_body_is_wanted() -> None:
    """The client waits for it."""
    async with asking(hello()) as client:
        client.send(WAITING)
        await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(b"{")
        client.send(b"}")
        answer = await client.answer()

    assert answer.status == 200
    assert client.informational == []


async def test_an_early_answer_comes_without_a_100() -> None:
    """Who is refused does not send its body in vain, and the connection ends."""
    app = saying(start(401, (b"content-length", b"0")), body(b""), read=False)
    async with asking(app) as client:
        client.send(WAITING)
        answer = await client.answer()
        await client.closed()

    assert answer.status == 401
    assert client.informational == []
    assert answer.header(b"connection") == b"close"


async def test_a_stream_ends_where_its_app_was_cancelled() -> None:
    """A client that leaves cancels nobody who did not ask for it, and breaks nothing."""
    app = saying(start(), *[body(b"x" * 1000, more=True)] * 5, body(b""))
    async with asking(app) as client:
        client.send(GET)
        client.close()
        with pytest.raises(PeerLeft):
            await client.head()

    assert app.cancelled == 0
