"""Uses the proxy and closes it in one of the named ways; whatever is left open warns.

Arguments: the address of an engine, the way to close, the kind of event loop.
"""

import asyncio
import gc
import sys

import uvloop
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

import llmproxy
from llmproxy.types import ASGIApp
from tests.support.asgi import drive

URL, WAY, LOOP = sys.argv[1:]
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


def loop() -> asyncio.AbstractEventLoop:
    """Return a loop that does not complain of a busy machine."""
    made = uvloop.new_event_loop() if LOOP == "uvloop" else asyncio.new_event_loop()
    made.slow_callback_duration = 60
    return made


def run(main: object) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)  # type: ignore[arg-type]


async def ask(app: ASGIApp) -> None:
    """Leave a connection to the engine in the pool, and an answer in the middle of a stream."""
    whole = await drive(app, headers=HEADERS)
    assert whole.status == 200, whole
    stream = await drive(app, headers=HEADERS, path="/v1/stream", leave_after=1)
    assert stream.status == 200, stream
    health = await drive(app, method="GET", path="/health/ready")
    assert health.status == 200, health


def closed_by_hand() -> None:
    app = llmproxy.create_app(llmproxy.Settings(upstreams=URL))

    async def main() -> None:
        await ask(app)
        await app.aclose()
        await ask(app)  # it can be used again
        await app.aclose()
        await app.aclose()

    run(main())


def closed_by_the_end_of_the_loop() -> None:
    app = llmproxy.create_app(llmproxy.Settings(upstreams=URL))
    for _ in range(2):  # the second loop is another one
        run(ask(app))


def closed_by_the_hosts_lifespan() -> None:
    first = llmproxy.create_app(llmproxy.Settings(upstreams=URL))
    second = llmproxy.create_app(llmproxy.Settings(upstreams=URL))
    host = Starlette(
        routes=[Mount("/first", first), Mount("/second", second)], lifespan=llmproxy.lifespan
    )
    for _ in range(2):  # the second time on another loop
        with TestClient(host, backend_options={"loop_factory": loop}) as client:
            for mount in ("/first", "/second"):
                answer = client.post(f"{mount}/v1/chat/completions", json={})
                assert answer.status_code == 200, answer.text


def never_closed() -> None:
    """A test client without `with` ends its loop after each request."""
    app = llmproxy.create_app(llmproxy.Settings(upstreams=URL))
    client = TestClient(app, backend_options={"loop_factory": loop})
    for _ in range(2):
        answer = client.post("/v1/chat/completions", json={})
        assert answer.status_code == 200, answer.text


globals()[WAY]()
gc.collect()  # what was left open complains when it is found
