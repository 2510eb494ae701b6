"""The hop from nginx to llmproxy: connections are used again, requests are not."""

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.nginx.clients import CHAT, assert_refused, begin, caller, plain_caller
from tests.nginx.front import Certificates, Front, render_public
from tests.nginx.upstream import Upstream


async def test_connections_are_used_again(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """Several requests of several callers, streams included, take one connection to llmproxy."""
    for _ in range(3):
        async with caller(public, trusting) as client:
            async with upstream.answering():
                await client.get("/v1/models")
                await client.post(CHAT, json={})
            asking = asyncio.create_task(begin(client))
            call = await upstream.next_call()
            await call.read_body()
            await call.begin_stream()
            response = await asking
            await call.end_stream()
            await response.aread()

    assert upstream.calls_seen == 9
    assert upstream.connections == 1
    assert {call.header("connection") for call in upstream.calls} == {None}


async def test_connections_are_used_again_by_the_plain_front(
    plain: Front, upstream: Upstream
) -> None:
    """plain.conf keeps them, too."""
    async with plain_caller(plain) as client, upstream.answering():
        for _ in range(3):
            await client.post(CHAT, json={})

    assert (upstream.calls_seen, upstream.connections) == (3, 1)


@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
@pytest.mark.parametrize("body", [b"{}", b""], ids=["body", "no_body"])
async def test_a_post_is_never_sent_twice(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, body: bytes, reused: bool
) -> None:
    """A connection that dies after the request went out is a 502: the call may have been billed."""
    async with caller(public, trusting) as client:
        if reused:
            async with upstream.answering():
                await client.get("/v1/models")
        before = upstream.calls_seen
        asking = asyncio.create_task(client.post(CHAT, content=body))
        call = await upstream.next_call()
        await call.read_body()
        call.hang_up()
        answer = await asking

    assert_refused(answer, 502, "upstream_unreachable")
    assert upstream.calls_seen == before + 1


async def test_a_get_outlives_a_connection_that_was_just_closed(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """A read that meets a connection just being closed is asked again on a fresh one."""
    async with caller(public, trusting) as client:
        async with upstream.answering():
            await client.get("/v1/models")
        asking = asyncio.create_task(client.get("/v1/models"))
        call = await upstream.next_call()
        call.hang_up()
        again = await upstream.next_call()
        await again.answer()
        answer = await asking

    assert answer.status_code == 200
    assert again.connection == call.connection + 1


async def test_llmproxy_being_away_is_a_502(root: Path, certificates: Certificates) -> None:
    """While it restarts, callers get an error that their client understands."""
    rendered = render_public(root, f"unix:{root}/nobody.sock", certificates)
    async with (
        rendered.running() as front,
        caller(front, certificates.client_context()) as client,
    ):
        assert_refused(await client.post(CHAT, json={}), 502, "upstream_unreachable")


@pytest.mark.parametrize("status", ["404 Not Found", "429 Too Many Requests", "502 Bad Gateway"])
async def test_llmproxys_own_errors_pass_unchanged(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, status: str
) -> None:
    """Its body and its Retry-After say more than nginx could."""
    own = '{"error":{"message":"llmproxy knows","type":"t","param":null,"code":"c"}}'
    async with (
        caller(public, trusting) as client,
        upstream.answering("retry-after: 7\r\nx-request-id: r\r\n", status=status, body=own),
    ):
        answer = await client.post(CHAT, json={})

    assert f"{answer.status_code}" == status[:3]
    assert answer.text == own
    assert answer.headers.get_list("retry-after") == ["7"]
    assert answer.headers.get_list("x-request-id") == ["r"]


async def test_an_answer_cannot_send_nginx_elsewhere(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """X-Accel-Redirect from a model server opens none of the closed paths."""
    async with (
        caller(public, trusting) as client,
        upstream.answering("x-accel-redirect: /.llmproxy-error\r\n"),
    ):
        answer = await client.get("/v1/models")

    assert answer.json() == {"ok": True}
    assert "x-accel-redirect" not in answer.headers
