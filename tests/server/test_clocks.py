"""A client has a bounded time for everything that it does, however its bytes drip."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmproxy.server.bounds import Bounds
from llmproxy.types import Receive, Scope, Send
from tests.server.apps import GET, asking, body, hello, start
from tests.support.calls import eventually
from tests.support.client import RawClient, request_bytes
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

SHORT = 0.3  # seconds, for whichever clock a test is about
LATE = 5.0  # seconds by which it must have been noticed, on a busy machine too
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def dripping(client: RawClient, data: bytes, pause: float) -> AsyncIterator[None]:
    """Send byte after byte while the block runs."""

    async def drip() -> None:
        for byte in data:
            client.send(bytes([byte]))
            await asyncio.sleep(pause)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()


def test_the_defaults_are_what_is_documented() -> None:
    """Idle connections outlive the 60 s that nginx keeps its own."""
    bounds = Bounds()

    assert bounds.idle_timeout == 75
    assert (bounds.head_timeout, bounds.body_timeout, bounds.write_timeout) == (10, 60, 60)
    assert (bounds.head, bounds.field, bounds.fields, bounds.target) == (32768, 8192, 100, 8192)


async def test_a_head_that_drips_is_given_up() -> None:
    """The clock began with the connection, and bytes do not renew it."""
    app = hello()
    async with asking(app, head_timeout=SHORT) as client:
        began = now()
        async with dripping(client, HEAD, 0.02):
            answer = await client.answer()
            took = now() - began
        await client.closed()

    assert answer.status == 408
    assert SHORT - 0.05 <= took < LATE
    assert app.scopes == []


@pytest.mark.parametrize("first", [GET, HEAD + b"x" * 1000], ids=["get", "post"])
async def test_a_later_head_has_a_clock_of_its_own(first: bytes) -> None:
    """It began with its first byte, also behind a request that came at once."""
    async with asking(hello(), head_timeout=1.0) as client:
        client.send(first)
        await client.answer()
        await asyncio.sleep(1.1)
        client.send(GET[:5])
        await asyncio.sleep(0.05)
        client.send(GET[5:])
        answer = await client.answer()

    assert answer.status == 200


async def test_waiting_before_the_first_byte_counts() -> None:
    """A connection that comes early gets no more time for its head."""
    async with asking(hello(), head_timeout=1.6) as client:
        began = now()
        await asyncio.sleep(1.3)
        client.send(b"GET")
        await client.head()

    assert now() - began < 1.6 + 1.3


async def test_a_client_that_says_nothing_is_closed() -> None:
    """Without a word: there is nothing to answer."""
    async with asking(hello(), head_timeout=SHORT) as client:
        rest = await client.rest()

    assert rest == b""


async def test_an_idle_connection_is_closed() -> None:
    """After its own time, not that of a head."""
    async with asking(hello(), head_timeout=30, idle_timeout=SHORT) as client:
        client.send(GET)
        await client.answer()
        rest = await client.rest()

    assert rest == b""


async def test_the_head_of_a_later_request_has_its_own_time() -> None:
    """What was left of the idle time does not shorten it."""
    async with asking(hello(), head_timeout=5, idle_timeout=0.5) as client:
        client.send(GET)
        await client.answer()
        client.send(GET[:10])
        await asyncio.sleep(1)
        client.send(GET[10:])
        answer = await client.answer()

    assert answer.status == 200


async def test_a_body_that_drips_is_given_up() -> None:
    """With a 408, no engine, and the end of the connection."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, timeout_body=SHORT) as proxy,
        proxy.client() as client,
    ):
        client.send(HEAD)
        async with dripping(client, b"x" * 1000, 0.02):
            answer = await client.answer()
        await client.closed()

    assert answer.status == 408
    assert b'"code":"request_timeout"' in answer.body
    assert engine.accepted == 0


async def test_a_large_body_at_a_good_rate_may_take_longer() -> None:
    """Each 64 KiB buy another second."""
    async with asking(hello(), body_timeout=SHORT, body_rate=100_000) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 150000\r\n\r\n")
        for _ in range(15):
            client.send(b"x" * 10_000)
            await asyncio.sleep(0.07)
        answer = await client.answer()

    assert answer.status == 200


async def test_a_body_that_nobody_takes_is_not_late() -> None:
    """When the app is slow, the client is not to blame: neither meanwhile nor after."""
    wanted = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1)
        wanted.set()
        while (await receive())["more_body"]:
            pass
        await send(start(204))
        await send(body())

    async with asking(app, body_timeout=1.0, body_rate=10**9, read_ahead=1000) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
        client.send(b"x" * 3000)
        await wanted.wait()
        await asyncio.sleep(0.6)
        client.send(b"x" * 1000)
        answer = await client.answer()

    assert answer.status == 204


async def test_half_an_answer_before_a_late_body_does_not_look_whole() -> None:
    """Where the end of the connection is the end of the answer, it is reset."""
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"half", more=True))
        await over.wait()

    async with asking(app, body_timeout=SHORT, linger=SHORT) as client:
        client.send(b"POST / HTTP/1.0\r\nContent-Length: 4000\r\n\r\n")
        await client.head()
        await eventually(lambda: client.ended, "it was cut")
        over.set()

        assert client.was_reset


async def test_an_answer_may_take_as_long_as_it_likes() -> None:
    """Once the request is there, the client has no clock."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(1)
        await send(start(204))
        await send(body())

    async with asking(app, head_timeout=SHORT, body_timeout=SHORT, idle_timeout=SHORT) as client:
        client.send(request_bytes())
        answer = await client.answer()

    assert answer.status == 204


async def test_what_drips_into_a_refusal_is_not_listened_to_for_long() -> None:
    """The last word is said; two seconds later, at most, the socket is gone."""
    async with asking(hello(), linger=SHORT) as client:
        client.send(b"nonsense\r\n\r\n")
        began = now()
        async with dripping(client, b"x" * 1000, 0.02):
            await client.rest()
            await eventually(lambda: client.lost, "the socket was gone")

    assert now() - began < LATE


@pytest.mark.parametrize("size", [1, 30_000])
async def test_a_head_that_never_ends_costs_no_more_than_its_limit(size: int) -> None:
    """It is closed once 32 KiB are exceeded."""
    sent = 0
    async with asking(hello()) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while not client.ended:
            client.send(b"X: " + b"y" * size + b"\r\n")
            sent += size + 5
            await asyncio.sleep(0)
        answer = await client.answer()

    assert answer.status == 431
    assert sent < 200_000
