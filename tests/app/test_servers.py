"""The app under the servers that people run ASGI apps with, each in a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.server import Hosted, HostName, hosted
from tests.support.streams import CHAT, judge
from tests.support.upstream import Exchange, Script, ScriptedServer, scripted
from tests.support.wire import PeerLeft

APPS: dict[HostName, str] = {
    "uvicorn": "llmproxy:app",
    "granian": "llmproxy:app",
    "hypercorn": "llmproxy:app",
}
SERVERS = pytest.mark.parametrize("server", APPS)


@asynccontextmanager
async def serving(server: HostName, script: Script) -> AsyncIterator[tuple[Hosted, ScriptedServer]]:
    """Run the app from the environment alone."""
    async with (
        scripted(script) as engine,
        hosted(server, APPS[server], {"LLMPROXY_UPSTREAMS": engine.url}) as host,
    ):
        yield host, engine


async def body_of(client: RawClient) -> bytes:
    """Return the body of a stream as far as it came."""
    body = b""
    try:
        async for frame in client.chunks():
            body += frame
    except PeerLeft:
        pass
    return body


@SERVERS
async def test_whole_answers_and_streams(server: HostName) -> None:
    """JSON comes whole; events come one by one, each before the next is sent; a path escaped."""
    got = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        if request.body != b'{"stream":true}':
            exchange.json({"target": request.target.decode()})
            return
        exchange.begin()
        for event in (*CHAT.events, *CHAT.terminal):
            exchange.chunk(event)
            await got.acquire()
        exchange.end()

    async with serving(server, script) as (host, _), raw_client(port=host.port) as client:
        client.send(request_bytes(b"/v1/models/a%2Fb?x=%2F", method=b"GET", body=None))
        whole = await client.answer(to=b"GET")
        client.send(request_bytes(body=b'{"stream":true}'))
        head = await client.head()
        frames = []
        async for frame in client.chunks():
            frames.append(frame)
            got.release()
        client.send(request_bytes(body=b"["))
        refused = await client.answer()

    assert whole.body == b'{"target":"/v1/models/a%2Fb?x=%2F"}'
    assert head.header(b"content-type") == b"text/event-stream"
    assert frames == [*CHAT.events, *CHAT.terminal]
    assert refused.status == 400


@SERVERS
async def test_a_client_that_leaves_frees_the_engine(server: HostName) -> None:
    """Before the first byte, and between tokens."""

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        if request.body == b'{"stream":true}':
            exchange.begin()
            exchange.chunk(CHAT.events[0])
        await exchange.closed()

    async with serving(server, script) as (host, engine):
        async with raw_client(port=host.port) as streaming:
            streaming.send(request_bytes(body=b'{"stream":true}'))
            await streaming.head()
            await streaming.anything()
        await engine.abandoned()
        async with raw_client(port=host.port) as waiting:
            waiting.send(request_bytes())
            await (await engine.reached(engine.accepted + 1)).sent()
        await engine.abandoned()

    assert engine.open == 0


@SERVERS
async def test_a_broken_stream_is_not_shown_as_complete(server: HostName) -> None:
    """The error event, no terminating chunk; and a JSON answer that breaks is cut."""
    fail = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        if request.body == b'{"stream":true}':
            exchange.begin()
            exchange.chunk(CHAT.events[0])
        else:
            exchange.begin(content_type=b"application/json")
            exchange.chunk(b'{"choices":')
        await fail.wait()
        exchange.reset()

    async with serving(server, script) as (host, _):
        async with raw_client(port=host.port) as client:
            client.send(request_bytes(body=b'{"stream":true}'))
            await client.head()
            await client.anything()
            fail.set()
            stream = await body_of(client)
            stream_complete = client.complete
        fail.clear()
        async with raw_client(port=host.port) as client:
            client.send(request_bytes())
            await client.head()
            await client.anything()
            fail.set()
            whole = await body_of(client)
            whole_complete = client.complete

    verdict = judge(CHAT, stream)
    assert verdict.error is not None
    assert not verdict.complete
    assert not stream_complete
    assert whole == b'{"choices":'
    assert not whole_complete
