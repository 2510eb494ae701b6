"""Methods, and answers without a body."""

import json

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import Exchange, answering, json_answer, scripted

ECHO = json_answer({"ok": True})


@pytest.mark.parametrize(
    "method", [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"], ids=bytes.decode
)
async def test_ordinary_methods_go_on(method: bytes) -> None:
    """Files are deleted, batches listed, assistants changed: all of it passes."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(b"/v1/files", method=method, body=None))

    assert answer.status == 200
    assert engine.requests[0].method == method


@pytest.mark.parametrize(
    "method", [b"TRACE", b"PROPFIND", b"PURGE", b"M-SEARCH", b"LOCK"], ids=bytes.decode
)
async def test_the_rest_is_not_allowed(method: bytes) -> None:
    """They would make an echo of us or mean nothing to an engine; the answer says what may be."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(b"/v1/models", method=method, body=None))

    assert answer.status == 405
    assert json.loads(answer.body)["error"]["code"] == "method_not_allowed"
    assert answer.header(b"allow") == b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert engine.accepted == 0


async def test_an_upgrade_is_not_made() -> None:
    """A request that wants another protocol is answered in this one."""
    wish = [
        (b"connection", b"upgrade, http2-settings"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"AAMAAABk"),
    ]

    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(
            request_bytes(b"/v1/models", method=b"GET", headers=wish, body=None)
        )

    assert answer.status == 200
    request = engine.requests[0]
    assert request.header(b"upgrade") is request.header(b"http2-settings") is None


async def test_head_tells_the_length_and_sends_nothing() -> None:
    """The engine is asked with HEAD too; the connection to it stays usable."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4711\r\n\r\n"

    async with (
        scripted(answering(head)) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        for _ in range(2):
            client.send(request_bytes(b"/v1/files", method=b"HEAD", body=None))
            answer = await client.answer(to=b"HEAD")
        left_over = bytes(client.unread)

    assert answer.status == 200
    assert answer.header(b"content-length") == b"4711"
    assert left_over == b""
    assert [request.method for request in engine.requests] == [b"HEAD", b"HEAD"]
    assert engine.accepted == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"], ids=bytes.decode)
@pytest.mark.parametrize("length", [b"", b"content-length: 50\r\n"], ids=["plain", "as_if"])
async def test_an_answer_without_a_body_ends_with_its_head(status: bytes, length: bytes) -> None:
    """No length that counts, no chunking, and the next answer follows on the same connections.

    A 304 may have the length that its 200 would have.
    """
    head = b"HTTP/1.1 %b\r\netag: x\r\n%b\r\n" % (status, length)

    async with scripted(answering(head)) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            for _ in range(2):
                client.send(request_bytes(b"/v1/files/7", method=b"DELETE", body=None))
                answer = await client.answer(to=b"DELETE")
            left_over = bytes(client.unread)
        line = await proxy.log.line()

    assert answer.status == int(status[:3])
    assert answer.header(b"transfer-encoding") is None
    assert answer.header(b"etag") == b"x"
    assert left_over == b""
    assert line["outcome"] == "completed"
    assert engine.accepted == 1


async def test_head_of_a_stream_is_not_a_broken_stream() -> None:
    """There is nothing to finish where there is no body."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"

    async with scripted(answering(head)) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(method=b"HEAD", body=None))
        line = await proxy.log.line()

    assert answer.status == 200
    assert line["outcome"] == "completed"


async def test_an_error_to_head_has_no_body() -> None:
    """Neither for what we refuse nor for what failed behind us."""

    async def dies(exchange: Exchange) -> None:
        await exchange.head()
        exchange.reset()

    async with (
        scripted(dies) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(b"/nothing", method=b"HEAD", body=None))
        refused = await client.answer(to=b"HEAD")
        client.send(request_bytes(b"/v1/files", method=b"HEAD", body=None))
        failed = await client.answer(to=b"HEAD")
        left_over = bytes(client.unread)

    assert (refused.status, failed.status) == (404, 502)
    assert left_over == b""
