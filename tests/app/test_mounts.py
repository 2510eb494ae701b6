"""Mounted in somebody else's app."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.testclient import TestClient

import llmproxy
from llmproxy.application import LLMProxy
from llmproxy.types import ASGIApp, Receive, Scope, Send
from tests.support.calls import eventually
from tests.support.client import Answer, raw_client, request_bytes
from tests.support.hosts import Wrapping, mounted
from tests.support.rig import UNROUTED, sample, served_here
from tests.support.streams import CHAT, judge
from tests.support.upstream import Exchange, Script, ScriptedServer, json_answer, scripted
from tests.support.wire import patience

ECHO = json_answer({"ok": True})
STREAM = request_bytes(b"/llm/v1/chat/completions", body=b'{"stream":true}')
WHOLE = request_bytes(b"/llm/v1/chat/completions")


def proxy_for(engine: ScriptedServer, **settings: Any) -> LLMProxy:
    # Not routed: the engines are to be asked nothing but what a test asks.
    unrouted = {"middleware": UNROUTED, **settings}
    return llmproxy.create_app(llmproxy.Settings(upstreams=(engine.upstream,), **unrouted))


@asynccontextmanager
async def serving(host: ASGIApp, *apps: LLMProxy) -> AsyncIterator[int]:
    """Serve a host that tells nobody of its start and its end."""
    async with served_here(host, lifespan="off") as port:
        yield port
    for app in apps:
        await app.aclose()


async def ask(port: int, request: bytes) -> Answer:
    async with raw_client(port=port) as client:
        client.send(request)
        return await client.answer(to=request.partition(b" ")[0])


def starlette_host(app: LLMProxy) -> ASGIApp:
    return mounted(("/llm", app))


def fastapi_host(app: LLMProxy) -> ASGIApp:
    host = FastAPI()

    @host.get("/hello")
    async def hello() -> str:
        return "hello from the host"

    host.mount("/llm", app)
    return host


def host_in_a_host(app: LLMProxy) -> ASGIApp:
    return Starlette(routes=[Mount("/", Starlette(routes=[Mount("/llm", app)]))])


HOSTS = pytest.mark.parametrize(
    "host", [starlette_host, fastapi_host, host_in_a_host], ids=lambda each: each.__name__
)


@HOSTS
async def test_it_answers_under_its_mount(host: Any) -> None:
    """The engine sees the path below the mount; the host need not start anything."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(host(app), app) as port:
            answer = await ask(port, WHOLE)

    assert answer.status == 200
    assert engine.requests[0].target == b"/v1/chat/completions"


@HOSTS
async def test_escapes_survive_the_mount(host: Any) -> None:
    """The raw path is what counts: a slash in a model's id stays escaped."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(host(app), app) as port:
            await ask(
                port,
                request_bytes(b"/llm/v1/models/meta%2Fllama?x=%2F", method=b"GET", body=None),
            )

    assert engine.requests[0].target == b"/v1/models/meta%2Fllama?x=%2F"


@HOSTS
async def test_its_pages_are_below_the_mount_too(host: Any) -> None:
    """And nowhere else."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(host(app), app) as port:
            inside = await ask(port, request_bytes(b"/llm/health/live", method=b"GET", body=None))
            outside = await ask(port, request_bytes(b"/health/live", method=b"GET", body=None))

    assert inside.status == 200
    assert outside.status == 404


async def test_the_host_keeps_its_own_pages() -> None:
    """What is not below the mount is none of our business."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(mounted(("/llm", app)), app) as port:
            answer = await ask(port, request_bytes(b"/hello", method=b"GET", body=None))

    assert answer.body == b"hello from the host"
    assert answer.header(b"x-request-id") is None


async def test_a_host_behind_a_prefix_of_its_own() -> None:
    """Told by the server's root_path, as a proxy that takes no prefix off needs it."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with (
            served_here(mounted(("/llm", app)), lifespan="off", root_path="/gpu") as port,
            raw_client(port=port) as client,
        ):
            client.send(WHOLE)
            answer = await client.answer()
        await app.aclose()

    assert answer.status == 200
    assert engine.requests[0].target == b"/v1/chat/completions"


@pytest.mark.parametrize("prefix", [b"", b"/gpu"], ids=["taken_off", "left"])
async def test_a_host_that_was_told_its_own_prefix(prefix: bytes) -> None:
    """As `FastAPI(root_path=...)` is, whether or not the proxy before it takes the prefix off."""

    def host(app: ASGIApp) -> ASGIApp:
        async def told(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "root_path": "/gpu"}, receive, send)

        return told

    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(host(mounted(("/llm", app))), app) as port:
            answer = await ask(port, request_bytes(prefix + b"/llm/v1/chat/completions"))

    assert answer.status == 200
    assert engine.requests[0].target == b"/v1/chat/completions"


async def test_a_mount_with_a_parameter_in_its_path() -> None:
    """Which callers write as they like: `@` and `:` need no escape there."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(mounted(("/of/{tenant}", app)), app) as port:
            answer = await ask(port, request_bytes(b"/of/ada@example.com:1/v1/chat/completions"))

    assert answer.status == 200
    assert engine.requests[0].target == b"/v1/chat/completions"


async def test_two_mounts_keep_apart() -> None:
    """Other settings, other engines, other figures."""
    async with scripted(ECHO) as first_engine, scripted(ECHO) as second_engine:
        first = proxy_for(first_engine, max_body=10)
        second = proxy_for(second_engine)
        async with serving(mounted(("/one", first), ("/two", second)), first, second) as port:
            body = b'{"model": "a-long-name"}'
            refused = await ask(port, request_bytes(b"/one/v1/chat/completions", body=body))
            answers = [
                await ask(port, request_bytes(b"/two/v1/chat/completions", body=body))
                for _ in range(3)
            ]
            scraped = await ask(port, request_bytes(b"/two/metrics", method=b"GET", body=None))

    assert refused.status == 413
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert first_engine.accepted == 0
    labels = {"model": "a-long-name", "upstream": "engine", "status": "200"}
    assert sample(scraped.body, "llmproxy_requests_total", **labels, outcome="completed") == 3
    assert b'status="413"' not in scraped.body
    assert b'status="413"' in first.metrics.render()


async def test_a_hosts_gzip_compresses_what_is_whole() -> None:
    """Only streams are spared: JSON is the host's to squeeze."""
    async with scripted(json_answer({"text": "x" * 5000})) as engine:
        app = proxy_for(engine)
        host = mounted(("/llm", app), middleware=[Middleware(GZipMiddleware)])
        async with serving(host, app) as port:
            answer = await ask(
                port,
                request_bytes(b"/llm/v1/chat/completions", headers=[(b"accept-encoding", b"gzip")]),
            )

    assert answer.header(b"content-encoding") == b"gzip"
    assert json.loads(gzip.decompress(answer.body)) == {"text": "x" * 5000}


@asynccontextmanager
async def behind_base_http(script: Script) -> AsyncIterator[tuple[int, ScriptedServer]]:
    """Mount a proxy behind Starlette's BaseHTTPMiddleware."""
    async with scripted(script) as engine:
        app = proxy_for(engine)
        host = mounted(("/llm", app), middleware=[Middleware(Wrapping)])
        async with serving(host, app) as port:
            yield port, engine


async def test_behind_a_base_http_middleware_answers_are_whole() -> None:
    """The body was not taken from us, nor the answer from the client."""
    async with behind_base_http(ECHO) as (port, engine):
        body = b'{"model":"m"}'
        answer = await ask(port, request_bytes(b"/llm/v1/chat/completions", body=body))

    assert answer.body == b'{"ok":true}'
    assert answer.header(b"x-wrapped") == b"yes"
    assert engine.requests[0].body == body


async def test_a_base_http_middleware_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Once, for it takes away what the proxy promises of broken streams."""
    async with behind_base_http(ECHO) as (port, _):
        for _ in range(3):
            await ask(port, WHOLE)
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        async with serving(mounted(("/llm", app)), app) as port:
            await ask(port, WHOLE)

    told = [each for each in caplog.messages if "BaseHTTPMiddleware" in each]
    assert len(told) == 1


async def test_behind_a_base_http_middleware_streams_still_stream() -> None:
    """Each event arrives before the next is sent."""
    got = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for event in (*CHAT.events, *CHAT.terminal):
            exchange.chunk(event)
            await got.acquire()
        exchange.end()

    async with behind_base_http(script) as (port, _), raw_client(port=port) as client:
        client.send(STREAM)
        await client.head()
        frames = []
        async for frame in client.chunks():
            frames.append(frame)
            got.release()

    assert frames == [*CHAT.events, *CHAT.terminal]


async def test_behind_a_base_http_middleware_a_broken_stream_says_so() -> None:
    """It ends every stream as if it were complete: the error event is what is left to tell."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await asyncio.sleep(0.05)
        exchange.reset()

    async with behind_base_http(script) as (port, _):
        answer = await ask(port, STREAM)

    verdict = judge(CHAT, answer.body)
    assert verdict.error is not None
    assert not verdict.complete
    assert b"[DONE]" not in answer.body


async def test_behind_a_base_http_middleware_leaving_is_noticed() -> None:
    """The engine is let go in the middle of a stream."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(CHAT.events[0])
            await asyncio.sleep(0.01)

    async with behind_base_http(script) as (port, engine):
        async with raw_client(port=port) as client:
            client.send(STREAM)
            await client.head()
            await client.anything()
        await engine.abandoned()

    assert engine.open == 0


async def test_a_hosts_exception_handler_gets_none_of_ours() -> None:
    """What goes wrong is answered by us, in the shape that SDKs know."""

    async def handler(request: Request, exc: Exception) -> Response:
        return JSONResponse({"handled": "by the host"}, status_code=418)

    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        host = Starlette(
            routes=[Mount("/llm", app)],
            exception_handlers={Exception: handler, 404: handler, 500: handler},
        )
        async with serving(host, app) as port:
            unknown = await ask(port, request_bytes(b"/llm/nothing"))
            wrong = await ask(port, request_bytes(b"/llm/v1/chat/completions", body=b"["))

    assert (unknown.status, wrong.status) == (404, 400)
    assert json.loads(unknown.body)["error"]["code"] == "not_found"


async def test_a_broken_stream_passes_a_hosts_exception_handler() -> None:
    """Too late for another answer: what has begun is cut, behind whatever handler."""

    async def handler(request: Request, exc: Exception) -> Response:
        return JSONResponse({"handled": "by the host"}, status_code=418)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await asyncio.sleep(0.05)
        exchange.reset()

    async with scripted(script) as engine:
        app = proxy_for(engine)
        host = Starlette(routes=[Mount("/llm", app)], exception_handlers={Exception: handler})
        async with serving(host, app) as port, raw_client(port=port) as client:
            client.send(STREAM)
            answer = await client.answer()
            complete = client.complete

    assert judge(CHAT, answer.body).error is not None
    assert b"handled" not in answer.body
    assert not complete


async def test_a_hosts_lifespan_closes_every_mount() -> None:
    """When the host stops and not when the loop ends: nothing stays open at the engines."""
    async with scripted(ECHO) as engine:
        first, second = proxy_for(engine), proxy_for(engine)
        host = Starlette(
            routes=[Mount("/one", first), Mount("/two", second)], lifespan=llmproxy.lifespan
        )
        async with served_here(host) as port:
            for mount in (b"/one", b"/two"):
                await ask(port, request_bytes(mount + b"/v1/chat/completions"))
            kept_open = engine.open
        async with patience("both were closed", 2):  # idle connections would live for 4 s
            await engine.abandoned()

    assert kept_open == 2


@pytest.mark.parametrize("chain", ["", "routing"], ids=["alone", "routed"])
@pytest.mark.parametrize("said", [b"", CHAT.events[0]], ids=["before", "behind_the_first_byte"])
async def test_who_is_closed_in_the_middle_says_that_it_was_stopped(
    said: bytes, chain: str
) -> None:
    """The server has done nothing wrong: it is not told of, and nobody else is asked."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        if said:
            exchange.chunk(said)
        await exchange.closed()

    def asked() -> list[Any]:
        return [each for each in engine.requests if each.method == b"POST"]

    async with scripted(script) as engine:
        app = proxy_for(engine, middleware=chain)
        async with serving(mounted(("/llm", app)), app) as port, raw_client(port=port) as client:
            client.send(STREAM)
            if said:
                await client.head()
                await anext(client.chunks())
                await app.aclose()
                told = await client.rest()
            else:
                await eventually(lambda: bool(asked()), "the engine was asked")
                await app.aclose()
                answer = await client.answer()
                assert answer.status == 503
                told = answer.body

    assert b'"code":"stopped"' in told
    assert len(asked()) == 1
    labels = {"upstream": engine.upstream.name, "result": "stopped"}
    assert sample(app.metrics.render(), "llmproxy_upstream_attempts_total", **labels) == 1


async def test_a_websocket_is_turned_away() -> None:
    """A host's client that tries is told, not left hanging."""
    async with scripted(ECHO) as engine:
        app = proxy_for(engine)
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "websocket", "path": "/v1/realtime"}, receive, send)
        await app.aclose()

    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "not served here"}]


def test_a_test_client_can_be_used_twice() -> None:
    """Each time on a new event loop, with nothing said in between."""
    app = llmproxy.create_app(llmproxy.Settings(upstreams="http://127.0.0.1:9"))
    answers = []
    for _ in range(2):
        with TestClient(app) as client:
            answers += [client.get("/health/live"), client.get("/v1/models")]

    assert [answer.status_code for answer in answers] == [200, 502, 200, 502]
