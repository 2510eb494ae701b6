"""What is left of a request that ended early: nothing, wherever it was."""

import asyncio

import pytest

from llmproxy.assembly import assemble
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import InvalidRequest, UpstreamUnreachable
from llmproxy.metrics import Metrics
from llmproxy.middleware.routing import RoutingMiddleware
from llmproxy.outgoing import body_for
from llmproxy.protocol.endpoints import CHAT
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import InferenceRequest
from llmproxy.routing.course import Attempt
from llmproxy.routing.server import Server
from llmproxy.settings import Settings
from llmproxy.turns import STEP
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from llmproxy.upload import IncomingUpload
from tests.support.asgi import drive
from tests.support.builders import make_context
from tests.support.calls import eventually

PHASES = ("before the head", "behind the head", "in the body")


class Engine:
    """An app that stops in one phase of its answer, and tells when it has come to that."""

    def __init__(self, phase: str, *, stream: bool, failing: int = 0) -> None:
        self.phase = phase
        self.kind = b"text/event-stream" if stream else b"application/json"
        self.failing = failing  # attempts that come to nothing
        self.there = asyncio.Event()
        self.inflight: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        attempt = get_context(scope).attempt
        assert attempt is not None
        self.inflight.append(attempt.server.inflight)
        if len(self.inflight) <= self.failing:
            raise UpstreamUnreachable("nobody is there")
        if self.phase == "before the head":
            await self._stop()
        headers = [(b"content-type", self.kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.phase == "behind the head":
            await self._stop()
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        if self.phase == "in the body":
            await self._stop()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _stop(self) -> None:
        self.there.set()
        await asyncio.Event().wait()


def routed(app: ASGIApp, **settings: str) -> tuple[RoutingMiddleware, list[Server]]:
    """Return the layer in front of an app, and its servers, two of them."""
    two = "http://127.0.0.1:1,http://127.0.0.1:2"
    made = Settings(**{"upstreams": two, "middleware": "routing", **settings})
    engines = assemble(made, Metrics(), TrustedProxies(()), 0)
    layer = engines.parts[-1].layer
    assert layer is not None
    routing = layer(app)
    assert isinstance(routing, RoutingMiddleware)
    return routing, list(engines.registry.servers)


def given_back(routing: RoutingMiddleware, servers: list[Server]) -> bool:
    """Tell whether nothing is taken any more."""
    return (
        all(server.inflight == 0 for server in servers)
        and not routing.means.room.used
        and not routing.means.places.waiting
    )


@pytest.mark.parametrize("failing", [0, 1], ids=["first attempt", "second attempt"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("settings", [{}, {"aliases": "x=m"}], ids=["usual", "alias"])
async def test_a_request_that_is_cancelled_gives_everything_back(
    phase: str, stream: bool, failing: int, settings: dict[str, str]
) -> None:
    """The place on the server, the room for its stream, and the right to find out about it."""
    app = Engine(phase, stream=stream, failing=failing)
    routing, servers = routed(app, **settings)
    for server in servers:
        server.breaker._open()  # so that each attempt finds out
        server.breaker._opened_at -= 60
    asked = InferenceRequest("x" if settings else "m", stream=stream, prompt_bytes=2)
    ctx = make_context(inference=asked, endpoint=CHAT)
    request = asyncio.create_task(drive(routing, ctx=ctx))
    await asyncio.wait_for(app.there.wait(), 5)
    assert app.inflight == [1] * (failing + 1)
    assert sum(server.inflight for server in servers) == 1
    request.cancel()
    await asyncio.wait([request])

    assert given_back(routing, servers)
    assert ctx.attempt is not None
    breaker = ctx.attempt.server.breaker
    # An answer has shown that the server is well; without one, the next attempt finds out.
    assert breaker.state == ("closed" if phase == "in the body" else "half-open")
    assert breaker.lets_through()


async def test_a_request_that_is_answered_gives_everything_back() -> None:
    """A stream too, of which the bytes were kept."""
    for stream in (False, True):
        routing, servers = routed(Engine("", stream=stream))
        ctx = make_context(inference=InferenceRequest("m", stream=stream), endpoint=CHAT)
        seen = await drive(routing, ctx=ctx)

        assert seen.complete
        assert given_back(routing, servers)
        # Only of a stream is it known when its first token came.
        assert any(server.latency for server in servers) == stream


async def test_large_bodies_get_another_model_s_name_in_different_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is copied, and understood once more; the small ones wait for none of them."""
    turn = 0
    named: list[tuple[int, int]] = []  # the turn, and the size

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noting(attempt: Attempt, ctx: RequestContext) -> bytes | None:
        assert isinstance(ctx.body, bytes)
        named.append((turn, len(ctx.body)))
        return body_for(attempt, ctx)

    monkeypatch.setattr("llmproxy.journey.body_for", noting)
    routing, _ = routed(Engine("", stream=False), aliases="x=m")
    asked = InferenceRequest("x", prompt_bytes=2)
    small = b'{"model":"x"}'
    large = small[:-1] + b',"prompt":"%b"}' % (b"x" * STEP)
    counting = asyncio.create_task(turns())
    await asyncio.gather(
        *(
            drive(routing, ctx=make_context(inference=asked, endpoint=CHAT, body=body))
            for body in (large, large, small, large)
        )
    )
    counting.cancel()

    assert named[0][1] == len(small)
    assert len({turn for turn, size in named if size == len(large)}) == 3


async def test_an_upload_names_the_model_of_each_attempt() -> None:
    """Also when that is the one which its caller has named, after another one."""
    app = Engine("", stream=False, failing=1)
    routing, _ = routed(app, aliases="m=x", fallbacks="x=m", retries="1")
    named: list[str] = []

    async def receive() -> Message:
        raise AssertionError("nobody reads it")

    class Upload(IncomingUpload):
        def name(self, model: str) -> None:
            named.append(model)

    upload = Upload(receive, length=None, limit=1000, within=0.0)
    ctx = make_context(inference=InferenceRequest("m"), endpoint=CHAT, body=upload)
    seen = await drive(routing, ctx=ctx)

    assert seen.complete
    assert named == ["x", "m"]


async def test_a_time_that_cannot_be_understood_is_refused_before_anybody_is_asked() -> None:
    """It would look as if it worked."""
    app = Engine("", stream=False)
    routing, servers = routed(app)
    ctx = make_context(inference=InferenceRequest("m"), endpoint=CHAT)
    ctx.fields[b"x-llmproxy-timeout"] = b"soon"
    seen = await drive(routing, ctx=ctx)

    assert isinstance(seen.raised, InvalidRequest)
    assert app.inflight == []
    assert given_back(routing, servers)


@pytest.mark.parametrize("phase", PHASES)
async def test_who_waits_is_called_as_soon_as_a_place_is_free(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it would have looked again by itself."""
    monkeypatch.setattr("llmproxy.routing.places.LOOK_EVERY", 60.0)
    app = Engine(phase, stream=False)
    routing, servers = routed(app, upstreams="http://127.0.0.1:1;max_inflight=1")
    asked = InferenceRequest("m")
    first = asyncio.create_task(drive(routing, ctx=make_context(inference=asked, endpoint=CHAT)))
    await asyncio.wait_for(app.there.wait(), 5)
    ctx = make_context(inference=asked, endpoint=CHAT)
    second = asyncio.create_task(drive(routing, ctx=ctx))
    await eventually(lambda: routing.means.places.waiting == 1, "it waits")
    app.phase = ""
    first.cancel()
    seen = await asyncio.wait_for(second, 5)

    assert seen.complete
    assert ctx.paused > 0
    assert given_back(routing, servers)
