"""The layers of the frame: each by itself, and all of them around the end of the chain."""

import asyncio
from collections.abc import Sequence
from functools import partial

from benchmarks.micro.messages import (
    ANSWER,
    ANSWER_HEADERS,
    CHUNK,
    CLIENT_HEADERS,
    LAST_CHUNK,
    PATH,
    QUESTION,
    STREAM_HEADERS,
    STREAM_QUESTION,
    UPSTREAM,
)
from benchmarks.micro.registry import Preparation, Run, Work, benchmark
from benchmarks.micro.stand_ins import Answering, LineCount, ReadyTransport, Sink, Watch
from llmproxy import clock
from llmproxy.context import SCOPE_KEY, RequestContext
from llmproxy.forward import Forward
from llmproxy.middleware.disconnect import DisconnectMiddleware
from llmproxy.protocol.endpoints import CHAT, Paths
from llmproxy.records import Clocks, InferenceRequest
from llmproxy.routing.registry import Registry
from llmproxy.routing.rotation import Rotation
from llmproxy.routing.server import Server
from llmproxy.stack import Frame, Layer, Part, build, order
from llmproxy.stalls import Stalls
from llmproxy.transport import Transport
from llmproxy.types import EXCHANGE, ASGIApp, Message, Receive, Scope, Send


async def layer_per_request(layer: int) -> Preparation:
    frame = a_frame()
    app = Answering(ANSWER_HEADERS, ANSWER)
    yield Work(
        requests_through(order(frame)[layer](app), a_scope()), requests_through(app, a_scope())
    )


async def layer_per_chunk(layer: int) -> Preparation:
    frame = a_frame()
    app = Answering(STREAM_HEADERS, LAST_CHUNK)
    yield Work(stream_through(order(frame)[layer](app), app), stream_through(app, app))


def name_of(layer: Layer) -> str:
    """Return a layer's name, as its file has it."""
    return type(layer(Answering((), b""))).__name__.removesuffix("Middleware").lower()


# Whatever layer is added to the frame is measured from then on.
for _place, _layer in enumerate(order(Frame())):
    _name = name_of(_layer)
    benchmark(f"frame.{_name}", "request")(partial(layer_per_request, _place))
    benchmark(f"frame.{_name}, chunk", "chunk")(partial(layer_per_chunk, _place))


@benchmark("frame.disconnect, foreign server", "request")
async def disconnect_under_a_foreign_server() -> Preparation:
    """Where a task has to wait for the disconnect."""
    app = Patient()

    async def receive() -> Message:
        await never.wait()
        return {"type": "http.disconnect"}

    never = asyncio.Event()
    scope = a_scope()
    del scope["extensions"]
    layer = DisconnectMiddleware(app)
    yield Work(
        requests_through(layer, scope, receive, settling=True),
        requests_through(app, scope, receive, settling=True),
    )


class Patient(Answering):
    """Lets others run once, as everything that waits for an engine does."""

    def __init__(self) -> None:
        super().__init__(ANSWER_HEADERS, ANSWER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        await super().__call__(scope, receive, send)


@benchmark("frame.all and forward", "request")
async def all_and_forward() -> Preparation:
    transport = ReadyTransport(ANSWER_HEADERS, last=ANSWER)
    through = requests_through(chain(transport, a_frame()), a_scope())

    async def run(count: int) -> int:
        before = transport.asked
        return min(await through(count), transport.asked - before)

    yield Work(run)


@benchmark("frame.all and forward, chunk", "chunk")
async def all_and_forward_per_chunk() -> Preparation:
    transport = ReadyTransport(STREAM_HEADERS, last=LAST_CHUNK, chunk=CHUNK)
    yield Work(stream_through(chain(transport, a_frame()), transport, STREAM_QUESTION))


def a_frame() -> Frame:
    """Return a frame as `serve` makes it, but for the thread that writes the log."""
    return Frame(access_log=LineCount(), paths=Paths((UPSTREAM,)), mark=b"llmproxy-0123456789ab")


def chain(transport: Transport, frame: Frame, parts: Sequence[Part] = ()) -> ASGIApp:
    """Return the frame around the parts and the end of the chain."""
    clocks = Clocks()
    registry = Registry(lambda upstream: Server(upstream, transport))
    registry.replace("configured", [UPSTREAM])
    forward = Forward(
        rotation=Rotation(registry),
        clocks=clocks,
        stalls=Stalls(clocks.write),
        metrics=frame.metrics,
        trusted_proxies=frame.trusted_proxies,
        mark=frame.mark,
    )
    return build(frame, parts, forward)


def a_scope() -> Scope:
    """Return a request as our own server gives it, with what the outer layers would set."""
    ctx = RequestContext("a", "b", clock.now(), dict(CLIENT_HEADERS))
    ctx.path, ctx.endpoint, ctx.body = PATH, CHAT, QUESTION
    ctx.inference = InferenceRequest()
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 4000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": PATH.decode(),
        "raw_path": PATH,
        "query_string": b"",
        "headers": CLIENT_HEADERS,
        "state": {},
        "extensions": {EXCHANGE: None},
        SCOPE_KEY: ctx,
    }


def receiving(body: bytes) -> Receive:
    """Return a server's `receive` that has the whole body."""
    message: Message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        return message

    return receive


def requests_through(
    app: ASGIApp, scope: Scope, receive: Receive | None = None, *, settling: bool = False
) -> Run:
    """Send requests through an app, one after the other; `settling` lets its tasks end."""
    receive = receive or receiving(QUESTION)

    async def run(count: int) -> int:
        sink = Sink()
        _watch_over(scope)
        for _ in range(count):
            await app(scope, receive, sink.send)
            if settling:
                await asyncio.sleep(0)
        return min(sink.heads, sink.ends)

    return run


def stream_through(app: ASGIApp, source: Answering | ReadyTransport, body: bytes = QUESTION) -> Run:
    """Send one request through an app, which is answered by so many chunks."""
    scope, receive = a_scope(), receiving(body)

    async def run(count: int) -> int:
        sink = Sink()
        _watch_over(scope)
        source.chunks = count
        await app(scope, receive, sink.send)
        return sink.chunks if sink.ends == 1 else 0

    return run


def _watch_over(scope: Scope) -> None:
    if "extensions" in scope:
        scope["extensions"] = {EXCHANGE: Watch()}
