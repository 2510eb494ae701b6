"""The whole way: a caller, nginx with llmproxy.conf, a real `llmproxy serve`, an engine."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.nginx.clients import CHAT, PATIENCE, caller, plain_caller, raw, take
from tests.nginx.front import Certificates, Front, render_plain, render_public
from tests.nginx.upstream import Upstream
from tests.support.process import Process, running

MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":0,"owned_by":"test"}]}'
ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
EVENTS = [
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":'
    b'{"content":"%d"},"finish_reason":%b}]}\n\n' % (number, reason)
    for number, reason in enumerate([b"null", b"null", b'"stop"'])
] + [b"data: [DONE]\n\n"]
POLL = 0.02  # seconds


@pytest.fixture
async def engine() -> AsyncIterator[Upstream]:
    async with Upstream(reads=MODELS).listening() as listening:
        yield listening


@pytest.fixture
async def llmproxy(root: Path, engine: Upstream) -> AsyncIterator[Process]:
    """llmproxy on the unix socket, set up as README.md says."""
    environment = {
        "LLMPROXY_HOST": f"unix:{root}/llmproxy.sock",
        "LLMPROXY_UPSTREAMS": f"http://{engine.address}",
        "LLMPROXY_AUTH": "off",
        "LLMPROXY_TRUSTED_PROXIES": "unix",
        "LLMPROXY_MAX_BODY": "1MiB",
    }
    async with running([sys.executable, "-m", "llmproxy", "serve"], environment) as process:
        await ready(root / "llmproxy.sock", process)
        yield process


@pytest.fixture
async def whole(root: Path, llmproxy: Process, certificates: Certificates) -> AsyncIterator[Front]:
    """The front before a proxy that is ready."""
    address = f"unix:{root}/llmproxy.sock"
    async with render_public(root, address, certificates).running() as front:
        yield front


async def directly(socket: Path, path: str) -> httpx.Response:
    """Ask llmproxy past the front."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://llmproxy") as client:
        return await client.get(path)


async def ready(socket: Path, process: Process) -> None:
    """Wait until llmproxy finds its engine healthy."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            assert process.returncode is None, process.stderr
            try:
                if (await directly(socket, "/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            await asyncio.sleep(POLL)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_a_stream_arrives_event_by_event(
    whole: Front, engine: Upstream, certificates: Certificates, http2: bool
) -> None:
    """Each event of the engine is at the caller before the engine has the next one."""
    context = certificates.client_context(alpn=["h2"] if http2 else ["http/1.1"])
    async with caller(whole, context, http2=http2) as client:
        request = client.build_request("POST", CHAT, json=ASKED, headers={"x-request-id": "mine"})
        asking = asyncio.create_task(client.send(request, stream=True))
        call = await engine.next_call()
        await call.read_body()
        await call.begin_stream()
        await call.send_chunk(EVENTS[0])
        response = await asking
        chunks = response.aiter_raw()
        assert await take(chunks, len(EVENTS[0])) == EVENTS[0]
        for event in EVENTS[1:]:
            await call.send_chunk(event)
            assert await take(chunks, len(event)) == event
        await call.end_stream()
        assert [chunk async for chunk in chunks] == []

    assert response.status_code == 200
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("when", ["before_the_answer", "in_the_stream"])
async def test_a_caller_who_hangs_up_frees_the_engine(
    whole: Front, engine: Upstream, trusting: ssl.SSLContext, when: str
) -> None:
    """Through both proxies, the engine's connection is closed while the engine is silent."""
    async with caller(whole, trusting) as client:
        request = client.build_request("POST", CHAT, json=ASKED)
        asking = asyncio.create_task(client.send(request, stream=True))
        call = await engine.next_call()
        await call.read_body()
        if when == "before_the_answer":
            asking.cancel()
        else:
            await call.begin_stream()
            await call.send_chunk(EVENTS[0])
            response = await asking
            await take(response.aiter_raw(), len(EVENTS[0]))
            await response.aclose()

        await call.left()


async def test_llmproxy_believes_the_front_and_nobody_else(
    whole: Front, llmproxy: Process, engine: Upstream, trusting: ssl.SSLContext
) -> None:
    """The address in its log is the one that nginx saw; the certificate stays with llmproxy."""
    spoofed = {
        "x-forwarded-for": "203.0.113.9",
        "x-forwarded-proto": "gopher",
        "x-llmproxy-client-cert-verify": "SUCCESS",
        "x-request-id": "mine",
    }
    async with caller(whole, trusting) as client:
        asking = asyncio.create_task(client.post(CHAT, json=ASKED, headers=spoofed))
        call = await engine.next_call()
        await call.read_body()
        await call.answer()
        await asking
    await llmproxy.says('"mine"')

    (line,) = [line for line in llmproxy.stdout.splitlines() if '"mine"' in line]
    assert json.loads(line)["client"] == "127.0.0.1"
    assert call.header("x-forwarded-proto") == "https"
    assert "203.0.113.9" not in str(call.headers)
    assert not [name for name, _ in call.headers if name.startswith("x-llmproxy-")]


async def test_llmproxys_early_refusal_arrives(
    whole: Front, engine: Upstream, trusting: ssl.SSLContext
) -> None:
    """A body that is too large for llmproxy is refused while most of it is still to come."""
    async with raw(whole, trusting) as connection:
        await connection.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example.com\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n{"
        )
        answer = await connection.answer()

    assert answer.status == 413
    assert b'"request_too_large"' in answer.body
    assert engine.calls_seen == 0


async def test_what_the_front_closes_is_open_behind_it(
    whole: Front, trusting: ssl.SSLContext
) -> None:
    """llmproxy shows its metrics to everybody on its socket: nginx is what keeps them in."""
    async with caller(whole, trusting) as client:
        outside = await client.get("/metrics")
        ready = await client.get("/health/ready")
    inside = await directly(whole.root / "llmproxy.sock", "/metrics")

    assert (outside.status_code, inside.status_code) == (404, 200)
    assert ready.status_code == 200


async def test_many_calls_in_a_row_share_connections(
    whole: Front, engine: Upstream, trusting: ssl.SSLContext
) -> None:
    """None of them is lost to a connection that llmproxy had let go."""
    async with caller(whole, trusting) as client, engine.answering():
        for _ in range(50):
            assert (await client.post(CHAT, json=ASKED | {"stream": False})).status_code == 200


async def test_the_plain_front_streams_too(root: Path, llmproxy: Process, engine: Upstream) -> None:
    """plain.conf before the same llmproxy."""
    rendered = render_plain(root, f"unix:{root}/llmproxy.sock")
    async with rendered.running() as front, plain_caller(front) as client:
        request = client.build_request("POST", CHAT, json=ASKED)
        asking = asyncio.create_task(client.send(request, stream=True))
        call = await engine.next_call()
        await call.read_body()
        await call.begin_stream()
        chunks = None
        for event in EVENTS:
            await call.send_chunk(event)
            chunks = chunks or (await asking).aiter_raw()
            assert await take(chunks, len(event)) == event
        await call.end_stream()
