"""A piece is passed on in the turn in which it comes, and no layer is passed by."""

import asyncio
import functools
from typing import ClassVar

import pytest

from llmproxy.types import ASGIApp, Message, Receive, Scope, Send, Writer, writer_of
from tests.support.calls import eventually
from tests.support.client import request_bytes
from tests.support.rig import Connection, proxied
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, scripted

PIECES = 20
PIECE = CHAT.events[0]


async def one_by_one(exchange: Exchange) -> None:
    """Send many pieces, each in a packet of its own, and the end."""
    await exchange.request()
    exchange.begin()
    for _ in range(PIECES):
        exchange.chunk(PIECE)
        await asyncio.sleep(0.002)
    exchange.chunk(b"".join(CHAT.terminal))
    exchange.end()


class Layer:
    """A layer that somebody else has written."""

    messages: ClassVar[list[Message]] = []
    writers: ClassVar[list[Writer | None]] = []
    tasks: ClassVar[set["asyncio.Task[object] | None"]] = set()

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, self.around(send))

    def around(self, send: Send) -> Send:
        """Look, and leave it as it is."""
        Layer.writers.append(writer_of(send))
        return send


class Suspending(Layer):
    """Lets others run in the middle of each send, on a clock that needs a task."""

    def around(self, send: Send) -> Send:
        async def suspended(message: Message) -> None:
            Layer.messages.append(message)
            Layer.tasks.add(asyncio.current_task())
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
                await send(message)

        return suspended


class Wrapping(Layer):
    """Pretends to be what it has wrapped."""

    def around(self, send: Send) -> Send:
        @functools.wraps(send)
        async def wrapped(message: Message) -> None:
            Layer.messages.append(message)
            await send(message)

        return wrapped


class Stuck(Layer):
    """Never comes back from its third piece."""

    def around(self, send: Send) -> Send:
        async def stuck(message: Message) -> None:
            Layer.messages.append(message)
            await send(message)
            if len(Layer.messages) == 4:
                await asyncio.Event().wait()

        return stuck


@pytest.fixture(autouse=True)
def _nothing_seen_yet() -> None:
    for each in (Layer.messages, Layer.writers, Layer.tasks):
        each.clear()


@pytest.mark.parametrize("layer", [Layer, Suspending, Wrapping], ids=lambda each: each.__name__)
async def test_each_layer_sees_what_it_has_asked_for(layer: type[Layer]) -> None:
    """One that wraps `send` is given every piece, in the task of its request, in order."""
    async with (
        scripted(one_by_one) as engine,
        proxied(engine.upstream, middleware=f"{__name__}:{layer.__name__}") as proxy,
    ):
        answer, complete = await proxy.asked(CHAT.request)
        line = await proxy.log.line()

    whole = PIECE * PIECES + b"".join(CHAT.terminal)
    assert complete
    assert answer.body == whole
    assert line["bytes"] == len(whole)
    assert line["outcome"] == "completed"
    if layer is not Layer:
        assert b"".join(each.get("body", b"") for each in Layer.messages) == whole
    if layer is Suspending:
        assert len(Layer.tasks) == 1
        assert None not in Layer.tasks


async def test_without_one_the_bytes_are_written_at_once(connection: Connection) -> None:
    """Under our own server only: what another one's `send` does is its own affair."""
    async with (
        scripted(one_by_one) as engine,
        proxied(engine.upstream, middleware=f"{__name__}:Layer") as proxy,
    ):
        await proxy.ask(CHAT.request)

    assert [each is not None for each in Layer.writers] == [connection is not Connection.UVICORN]


async def test_a_client_that_leaves_ends_a_layer_that_is_stuck() -> None:
    """In the middle of a piece, too."""
    async with (
        scripted(one_by_one) as engine,
        proxied(engine.upstream, middleware=f"{__name__}:Stuck") as proxy,
    ):
        async with proxy.client() as client:
            client.send(CHAT.request)
            await eventually(lambda: len(Layer.messages) == 4, "it is stuck")
        line = await proxy.log.line()
        await engine.abandoned()

    assert len(Layer.messages) == 4
    assert line["outcome"] == "client_gone"


async def test_the_time_of_the_whole_is_kept_while_pieces_flow() -> None:
    """No piece renews the clock that the caller has set for all of it."""

    async def endless(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(PIECE)
            await asyncio.sleep(0.005)

    request = request_bytes(
        CHAT.path, body=b'{"stream":true}', headers=[(b"x-llmproxy-timeout", b"0.3")]
    )
    loop = asyncio.get_running_loop()
    async with scripted(endless) as engine, proxied(engine.upstream) as proxy:
        began = loop.time()
        answer, complete = await proxy.asked(request)
        took = loop.time() - began
        line = await proxy.log.line()

    assert not complete
    assert 0.25 < took < 5
    assert b"event: error" in answer.body or b'"error"' in answer.body
    assert b"not complete within the time" in answer.body
    assert line["code"] == "upstream_timeout"
