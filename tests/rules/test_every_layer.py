"""Promises that all layers share. A layer joins by standing in `stack.order`."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from llmproxy.context import get_context
from llmproxy.middleware.replay import ReplayMiddleware
from llmproxy.protocol.endpoints import Paths
from llmproxy.stack import Frame, Layer, order
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.builders import make_context


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for an app that is never called."""


def layers() -> dict[str, Layer]:
    """Return every layer of our own by its name."""
    frame = Frame(paths=Paths(()))
    named = {type(layer(nowhere)).__name__: layer for layer in order(frame)}
    return {**named, "ReplayMiddleware": ReplayMiddleware}


LAYERS = layers()
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())

CHUNKED_HEAD: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}


async def through(layer: Layer, app: ASGIApp, **options: Any) -> Exchange:
    """Drive one layer alone, with the context that the others would have made."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    return await drive(layer(app), ctx=make_context(), headers=headers, **options)


def test_every_layer_is_here() -> None:
    """The frame has at least these, and they stand in this order."""
    assert list(LAYERS)[:5] == [
        "ObserveMiddleware",
        "ErrorsMiddleware",
        "EntranceMiddleware",
        "BodyMiddleware",
        "DisconnectMiddleware",
    ]


@every_layer
@pytest.mark.parametrize("kind", ["lifespan", "websocket", "something-new"])
async def test_other_scopes_pass_untouched(layer: Layer, kind: str) -> None:
    """Lifespan and websocket traffic is none of our business."""
    got: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([scope, receive, send])

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope: Scope = {"type": kind}
    await layer(app)(scope, receive, send)

    assert got[0] is scope and got[1] is receive and got[2] is send
    assert scope == {"type": kind}


@every_layer
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=lambda kind: kind.__name__)
async def test_chunks_are_not_copied(layer: Layer, kind: Callable[[bytes], bytes]) -> None:
    """The very object that the app sent reaches the server."""
    chunk = kind(b"data: {}\n\n")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    seen = await through(layer, app)

    assert seen.raised is None
    assert seen.chunks[0] is chunk
    assert seen.complete


@every_layer
async def test_a_chunk_is_sent_before_the_next_exists(layer: Layer) -> None:
    """No layer waits for more than it has."""
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        for number in range(5):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            assert seen.chunks == [b"%d" % each for each in range(number + 1)]
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await through(layer, app, seen=seen)

    assert seen.chunks == [b"0", b"1", b"2", b"3", b"4", b""]


@every_layer
async def test_what_was_given_is_not_changed(layer: Layer) -> None:
    """Headers are lists of the server's or constants of the app's: neither is ours to write."""
    head: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    ours = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    request_headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    before = list(request_headers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(head)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await drive(
        layer(app), ctx=make_context(), headers=request_headers, extra={"headers": request_headers}
    )

    assert head == ours
    assert request_headers == before


@every_layer
async def test_a_layer_waits_for_a_slow_client(layer: Layer) -> None:
    """While the server does not take a chunk, the app does not get to the next one."""
    taken = asyncio.Event()
    sent: list[int] = []
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            sent.append(number)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    driving = asyncio.create_task(
        through(layer, app, seen=seen, take_when=lambda number: taken if number == 1 else None)
    )
    await seen.has_chunks(1)
    for _ in range(20):
        await asyncio.sleep(0)
    held = list(sent)
    taken.set()
    await driving

    assert held == [0]
    assert sent == [0, 1, 2]


@every_layer
async def test_cancellation_is_never_swallowed(layer: Layer) -> None:
    """Whoever cancels the request from outside, a shutdown say, sees it cancelled."""
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(through(layer, app))
    await cancel_in_flight(request, started)

    assert request.cancelled()


@every_layer
async def test_cancellation_is_not_swallowed_in_a_stream(layer: Layer) -> None:
    """The same after the answer has begun; and no end is made up for it."""
    started = asyncio.Event()
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(through(layer, app, seen=seen))
    await cancel_in_flight(request, started)

    assert request.cancelled()
    assert not seen.complete


@every_layer
async def test_no_request_state_stays_on_the_layer(layer: Layer) -> None:
    """One instance serves all requests at once: what it keeps is what it was given."""
    entered = 0
    both = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal entered
        entered += 1
        if entered == 2:
            both.set()
        await both.wait()
        await send(CHUNKED_HEAD)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    made = layer(app)
    before = dict(vars(made))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    exchanges = await asyncio.gather(
        drive(made, ctx=make_context(), headers=headers),
        drive(made, ctx=make_context(), headers=headers),
    )

    assert all(exchange.complete for exchange in exchanges)
    assert vars(made).keys() == before.keys()
    assert all(vars(made)[name] is value for name, value in before.items())


@every_layer
async def test_nothing_is_left_running(layer: Layer) -> None:
    """When the request is over, so is every task that was begun for it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    before = asyncio.all_tasks()
    await through(layer, app)
    for _ in range(5):
        await asyncio.sleep(0)

    assert asyncio.all_tasks() == before


@every_layer
async def test_an_error_comes_out_or_is_answered(layer: Layer) -> None:
    """Nobody makes a failure look like an answer of the app's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("a secret")

    seen = await through(layer, app)

    assert isinstance(seen.raised, LookupError) or seen.status == 500
    assert b"secret" not in seen.body


@every_layer
async def test_an_answer_that_was_cut_stays_cut(layer: Layer) -> None:
    """After the first chunk an error can only end the connection, never the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(CHUNKED_HEAD)
        get_context(scope).status = 200  # as the outermost layer does
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        raise LookupError("a secret")

    seen = await through(layer, app)

    assert seen.raised is not None
    assert not seen.complete
    assert b"secret" not in seen.body


@every_layer
def test_a_layer_is_made_of_an_app_and_keywords(layer: Layer) -> None:
    """`LayerMiddleware(app, *, ...)`: what `add_middleware` of every framework expects."""
    first, *others = inspect.signature(type(layer(nowhere))).parameters.values()

    assert first.name == "app"
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
