"""What is too much is refused by nginx, before llmproxy sees it, in words that clients parse."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.nginx.clients import (
    CHAT,
    assert_refused,
    begin,
    caller,
    http2_connection,
    raw,
)
from tests.nginx.front import Certificates, Front, render_public
from tests.nginx.upstream import Call, Upstream

MIB = 1024 * 1024
# Refilled so slowly that within a test nothing is: the burst is all there is.
SLOW_REFILL = {"rate=20r/s;": "rate=1r/m;"}
ONE_MORE_THAN_THE_BURST = 101
BEHIND_A_LOAD_BALANCER = (
    "set_real_ip_from 10.0.0.0/8;",
    "real_ip_header X-Forwarded-For;",
    "real_ip_recursive on;",
)


@asynccontextmanager
async def changed(
    root: Path, upstream: Upstream, certificates: Certificates, changes: dict[str, str]
) -> AsyncIterator[tuple[Front, httpx.AsyncClient]]:
    """The public front with other figures, and a caller."""
    rendered = render_public(root, upstream.address, certificates, changes=changes)
    async with (
        rendered.running() as front,
        caller(front, certificates.client_context()) as client,
    ):
        yield front, client


async def test_requests_beyond_the_rate_are_refused(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """The burst passes to the last request, the next one is told when to come back."""
    async with (
        changed(root, upstream, certificates, SLOW_REFILL) as (_, client),
        upstream.answering(),
    ):
        passed = [await client.get("/v1/models") for _ in range(ONE_MORE_THAN_THE_BURST)]
        refused = await client.get("/v1/models")
        health = await client.get("/health/ready")

    assert {answer.status_code for answer in passed} == {200}
    assert_refused(refused, 429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert health.status_code == 200, "a prober must not be refused"
    assert upstream.calls_seen == ONE_MORE_THAN_THE_BURST + 1


async def test_uploads_count_like_everything_else(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """The location with the larger body limit has the same request limit."""
    async with (
        changed(root, upstream, certificates, SLOW_REFILL) as (_, client),
        upstream.answering(),
    ):
        for _ in range(ONE_MORE_THAN_THE_BURST):
            await client.get("/v1/models")
        refused = await client.post("/v1/files", content=b"x")

    assert_refused(refused, 429, "rate_limit_exceeded")


async def open_streams(
    client: httpx.AsyncClient, upstream: Upstream, count: int
) -> list[tuple[Call, httpx.Response]]:
    streams = []
    for _ in range(count):
        asking = asyncio.create_task(begin(client))
        call = await upstream.next_call()
        await call.read_body()
        await call.begin_stream()
        streams.append((call, await asking))
    return streams


@pytest.mark.parametrize(
    "limit", ["limit_conn llmproxy_open 100;", "limit_conn llmproxy_open_in_all 2000;"]
)
async def test_one_stream_too_many_is_refused(
    root: Path, upstream: Upstream, certificates: Certificates, limit: str
) -> None:
    """A caller, and all callers together, hold only so many answers open; ended ones count no more.

    With 2 in place of the shipped figure.
    """
    fewer = {limit: limit.replace("2000", "2").replace("100", "2")}
    async with changed(root, upstream, certificates, fewer) as (_, client):
        streams = await open_streams(client, upstream, 2)

        refused = await client.post(CHAT, json={})
        call, response = streams[0]
        await call.end_stream()
        assert await response.aread() == b""
        async with upstream.answering():
            after = await client.post(CHAT, json={})
        await streams[1][1].aclose()

    assert_refused(refused, 429, "rate_limit_exceeded")
    assert after.status_code == 200


async def test_addresses_of_one_ipv6_network_count_together(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """The limit holds for a /64, however its addresses are abbreviated; others are not hit."""
    one_network = ["2001:db8:0:1::5", "2001:db8:0:1:aaaa:bbbb:cccc:dddd", "2001:db8:0:1:1::"]
    one_with_zeros = ["2001:db8::5", "2001:db8::a:b:c:d"]
    others = ["2001:db8:0:2::5", "2001:db8:1::5", "192.0.2.1", "192.0.2.2", "2001:db8:1:1::"]
    rendered = render_public(
        root,
        upstream.address,
        certificates,
        switch_on=BEHIND_A_LOAD_BALANCER,
        changes={
            "    set_real_ip_from 10.0.0.0/8;": "    set_real_ip_from 127.0.0.0/8;",
            **SLOW_REFILL,
            "burst=100 nodelay": "burst=1 nodelay",
        },
    )
    async with (
        rendered.running() as front,
        caller(front, certificates.client_context()) as client,
        upstream.answering(),
    ):

        async def status(address: str) -> int:
            answer = await client.get("/v1/models", headers={"x-forwarded-for": address})
            return answer.status_code

        first = [await status(address) for address in one_network]
        zeros = [await status(one_with_zeros[0]), *[await status(a) for a in one_with_zeros]]
        rest = [await status(address) for address in others]

    assert first == [200, 200, 429]
    assert zeros == [200, 200, 429]
    assert rest == [200] * len(others)


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
async def test_a_body_above_the_limit_is_refused(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, chunked: bool
) -> None:
    """32 MiB of JSON and one byte more are too much, announced or not."""
    size = 32 * MIB + 1

    async with raw(public, trusting) as connection:
        await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\n")
        if chunked:
            await connection.send(b"Transfer-Encoding: chunked\r\n\r\n%x\r\nx" % size)
        else:
            await connection.send(b"Content-Length: %d\r\n\r\n" % size)
        answer = await connection.answer()

    assert_refused(answer, 413, "request_too_large")
    assert upstream.calls_seen == 0


async def test_a_body_at_the_limit_passes(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """32 MiB exactly are not too much."""
    async with caller(public, trusting) as client, upstream.answering():
        answer = await client.post(CHAT, content=b"x" * (32 * MIB))

    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/files", "/v1/images/edits"])
async def test_uploads_may_be_larger(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, path: str
) -> None:
    """Up to 512 MiB go to llmproxy, which streams them; beyond that is nginx' 413."""
    async with raw(public, trusting) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: llm.example.com\r\nContent-Length: {{}}\r\n\r\n"
        await connection.send(head.format(512 * MIB).encode())
        call = await upstream.next_call()
        assert call.header("content-length") == str(512 * MIB)

    async with raw(public, trusting) as connection:
        await connection.send(head.format(512 * MIB + 1).encode())
        assert_refused(await connection.answer(), 413, "request_too_large")


async def test_a_body_above_the_limit_is_refused_over_http2(
    public: Front, upstream: Upstream, certificates: Certificates
) -> None:
    """The limit holds for both versions."""
    async with http2_connection(public, certificates.client_context(alpn=["h2"])) as connection:
        length = [("content-length", str(32 * MIB + 1))]
        await connection.post(CHAT, stream=1, headers=length, complete=False)
        assert_refused(await connection.answer(stream=1), 413, "request_too_large")

    assert upstream.calls_seen == 0


HOST = b"Host: llm.example.com\r\n"
NOT_ACCEPTED = [
    pytest.param(
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"X-Long: " + b"x" * 8192 + b"\r\n\r\n",
        *(431, "invalid_request"),
        id="one_header_too_large",
    ),
    pytest.param(
        b"GET /v1/models HTTP/1.1\r\n" + HOST + (b"X-Some: " + b"x" * 4000 + b"\r\n") * 9 + b"\r\n",
        *(431, "invalid_request"),
        id="all_headers_too_large",
    ),
    pytest.param(
        b"GET /v1/models?" + b"x" * 8192 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        *(414, "invalid_request"),
        id="target_too_long",
    ),
    pytest.param(b"\x01 / HTTP/1.1\r\n\r\n", 400, "invalid_request", id="not_http"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_request", id="no_host"),
    pytest.param(
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        *(400, "invalid_request"),
        id="two_lengths",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        *(400, "invalid_request"),
        id="length_and_chunked",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
        *(501, "invalid_request"),
        id="strange_encoding",
    ),
    pytest.param(b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed", id="trace"),
    pytest.param(b"GET / HTTP/2.1\r\n" + HOST + b"\r\n", 505, "invalid_request", id="version"),
]


@pytest.mark.parametrize(("request_bytes", "status", "code"), NOT_ACCEPTED)
async def test_what_is_no_good_http_is_refused(
    public: Front,
    upstream: Upstream,
    trusting: ssl.SSLContext,
    request_bytes: bytes,
    status: int,
    code: str,
) -> None:
    """Broken or oversized requests end at the front."""
    async with raw(public, trusting) as connection:
        await connection.send(request_bytes)
        answer = await connection.answer()

    assert_refused(answer, status, code)
    assert upstream.calls_seen == 0


async def test_headers_too_large_end_an_http2_connection(
    public: Front, upstream: Upstream, certificates: Certificates
) -> None:
    """HTTP/2 has no answer before the headers are decoded: it is ENHANCE_YOUR_CALM, and the end."""
    async with http2_connection(public, certificates.client_context(alpn=["h2"])) as connection:
        many = [(f"x-{number}", "x" * 8000) for number in range(9)]
        await connection.post(CHAT, stream=1, headers=many)
        goodbye = await connection.goodbye()

    assert goodbye.error_code == 11
    assert upstream.calls_seen == 0


async def test_the_plain_front_refuses_in_the_same_shape(plain: Front, upstream: Upstream) -> None:
    """plain.conf has the limits of size as well."""
    async with raw(plain, None) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 8192 + b"\r\n\r\n")
        assert_refused(await connection.answer(), 431, "invalid_request")
    async with raw(plain, None) as connection:
        await connection.send(
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (512 * MIB + 1)
        )
        assert_refused(await connection.answer(), 413, "request_too_large")

    assert upstream.calls_seen == 0
