"""The public layers in an app that is not ours."""

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import ref

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import llmproxy
from llmproxy import middleware
from tests.support.client import Answer, raw_client, request_bytes
from tests.support.rig import served_here
from tests.support.upstream import json_answer, scripted

BODY = b'{"model":"m","messages":[]}'
KEY = b"Kq3-vT9x-4Lw8-ZZ12"
README = Path(__file__).parents[2] / "README.md"


async def complete(request: Request) -> Response:
    """Answer as a host's own engine would."""
    return JSONResponse({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})


async def other(request: Request) -> Response:
    """Stand for a page of the host."""
    return JSONResponse({"page": True})


def host() -> Starlette:
    """Return an app that speaks the API, and something else."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/about", other, methods=["GET"]),
        ],
        lifespan=llmproxy.lifespan,
    )


@asynccontextmanager
async def asking(app: Starlette) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
    """Serve an app and ask it."""
    async with served_here(app) as port:

        async def ask(path: str = "/v1/chat/completions", key: bytes | None = None) -> Answer:
            headers = [(b"content-type", b"application/json")]
            if key is not None:
                headers.append((b"authorization", b"Bearer " + key))
            request = request_bytes(path.encode(), headers=headers, body=BODY)
            if path == "/about":
                request = request_bytes(b"/about", method=b"GET", body=None)
            async with raw_client(port=port) as client:
                client.send(request)
                return await client.answer()

        yield ask


async def test_limits_hold_in_front_of_any_app() -> None:
    """Three are let in, the fourth is told when to come back; other pages are not counted."""
    app = host()
    app.add_middleware(middleware.RateLimit, limits="3 req/hour")

    async with asking(app) as ask:
        answers = [await ask() for _ in range(4)]
        page = await ask("/about")

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[0].header(b"x-ratelimit-remaining-requests") == b"2"
    assert answers[3].header(b"retry-after") is not None
    assert page.status == 200


async def test_of_many_at_once_only_the_allowed_ones_get_in() -> None:
    """A race admits nobody."""
    app = host()
    app.add_middleware(middleware.RateLimit, limits="5 req/hour")

    async with asking(app) as ask:
        answers = await asyncio.gather(*(ask() for _ in range(50)))

    assert sum(answer.status == 200 for answer in answers) == 5


async def test_keys_are_asked_for_in_front_of_any_app() -> None:
    """Only where the API is spoken."""
    app = host()
    app.add_middleware(middleware.Auth, keys=f"ada:{KEY.decode()}")

    async with asking(app) as ask:
        got = [(await ask(key=key)).status for key in (None, b"wrong-key-0123", KEY)]
        page = await ask("/about")

    assert got == [401, 401, 200]
    assert page.status == 200


async def test_a_layer_that_is_let_go_of_is_closed_with_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not by the collector, in the middle of its work; whatever it warned of would be an error."""

    async def asked_once() -> int:
        app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
        app.add_middleware(middleware.RateLimit, limits="3 req/hour")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            return (await client.post("/v1/chat/completions", content=BODY)).status_code

    before = asyncio.all_tasks()
    assert await asked_once() == 200
    await asyncio.sleep(0.01)  # until it waits for the end
    running = [ref(task) for task in asyncio.all_tasks() - before]
    assert running

    gc.collect()

    assert all(task() is not None for task in running)
    assert "Task was destroyed" not in caplog.text


def test_a_door_that_nobody_can_close_is_said_to_be_open() -> None:
    """Without keys there is nothing to ask for, and the layer would let everybody pass."""
    with pytest.raises(llmproxy.SettingsError, match="nobody to ask"):
        middleware.Auth(host())

    middleware.Auth(host(), auth="off")
    middleware.Auth(host(), auth="keys")  # those that are issued


async def test_layers_share_the_frame_and_know_of_each_other() -> None:
    """Outer auth, inner limits: each key has its own."""
    app = host()
    keys = f"ada:{KEY.decode()},bob:{KEY.decode()}-other"
    app.add_middleware(middleware.RateLimit, limits="1 req/hour")
    app.add_middleware(middleware.Auth, keys=keys)

    async with asking(app) as ask:
        ada = [(await ask(key=KEY)).status for _ in range(2)]
        bob = [(await ask(key=KEY + b"-other")).status for _ in range(2)]

    assert ada == [200, 429]
    assert bob == [200, 429]


async def test_limits_of_two_layers_hold_and_both_give_places_back() -> None:
    """What the inner one has settled leaves the outer one's to be settled."""
    app = host()
    app.add_middleware(middleware.RateLimit, limits="2 concurrent")
    app.add_middleware(middleware.RateLimit, limits="1 concurrent, 3 req/hour")

    async with asking(app) as ask:
        answers = [(await ask()).status for _ in range(4)]

    assert answers == [200, 200, 200, 429]


async def test_the_layers_of_the_readme_ask_for_a_key_before_they_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lines are taken as they stand there, but for where the servers are."""
    monkeypatch.setenv("ADA_KEY", KEY.decode())
    lines = re.findall(r"^app\.add_middleware\(.*\)$", README.read_text(), re.MULTILINE)
    app = host()
    async with scripted(json_answer({"from": "the engine"})) as engine:
        servers = re.compile(r'upstreams="[^"]*"')
        written = servers.sub(f'upstreams="{engine.url}"', "\n".join(lines))
        exec(written, {"app": app, "llmproxy": llmproxy})  # our own page
        async with asking(app) as ask:
            stranger, ada = await ask(), await ask(key=KEY)

    assert len(lines) == 3
    assert (stranger.status, ada.status) == (401, 200)
    assert ada.body == b'{"from":"the engine"}'
    assert ada.header(b"x-ratelimit-limit-requests") == b"60"


@pytest.mark.parametrize("hidden", [middleware.Auth, middleware.RateLimit])
@pytest.mark.parametrize("between", [True, False])
def test_routing_does_not_hide_what_holds_callers_back(
    hidden: type[middleware.Auth], between: bool
) -> None:
    """It would answer, and nobody would be asked for a key or counted."""
    inner = hidden(host(), keys=f"ada:{KEY.decode()}")
    behind = GZipMiddleware(inner) if between else inner

    with pytest.raises(llmproxy.SettingsError, match=f"add {hidden.__name__} after it"):
        middleware.Routing(behind, upstreams="http://127.0.0.1:9")

    middleware.Routing(behind, aliases="m=llama")  # sends the requests on to them


async def test_routing_in_front_of_an_app_tries_it_again() -> None:
    """The app is the one server: a model has another name, and what fails is asked once more."""
    asked: list[str] = []

    async def failing_once(request: Request) -> Response:
        asked.append((await request.json())["model"])
        if len(asked) == 1:
            return JSONResponse({"error": {"message": "not now"}}, 500)
        return JSONResponse({"choices": []})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", failing_once, methods=["POST"]),
            Route("/about", other, methods=["GET"]),
        ],
        lifespan=llmproxy.lifespan,
    )
    app.add_middleware(middleware.Routing, aliases="m=llama")
    async with asking(app) as ask:
        answer = await ask()
        page = await ask("/about")

    assert (answer.status, asked) == (200, ["llama", "llama"])
    assert page.body == b'{"page":true}'


async def test_routing_with_upstreams_takes_what_is_theirs() -> None:
    """The rest stays with the app."""
    app = host()
    async with scripted(json_answer({"from": "the engine"})) as engine:
        app.add_middleware(middleware.Routing, upstreams=engine.url)
        async with asking(app) as ask:
            answer = await ask()
            page = await ask("/about")

    assert answer.body == b'{"from":"the engine"}'
    assert page.body == b'{"page":true}'
