"""What an outsider checks of a proxy that routes: what a client was told, and what is left of it.

async with fleet(in_order(speaking(TEXT), failing(b"503 ...")), speaking(TEXT)) as (proxy, _):
    answer, whole = await proxy.asked(chat(stream=True))
    assert said(answer) == TEXT
    await at_rest(proxy)
"""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from llmproxy.middleware.routing import RoutingMiddleware
from llmproxy.routing.breaker import LONGEST_REST, REFUSED_IN_A_ROW
from llmproxy.routing.server import Server
from tests.support.client import Answer, request_bytes
from tests.support.fleet import Answering, text_of
from tests.support.rig import Rig
from tests.support.upstream import Exchange, Request
from tests.support.wire import PATIENCE, patience

PATH = b"/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "The quick brown fox jumps over the lazy dog"
BEGUN = "The quick brown fox"


def chat(*, headers: list[tuple[bytes, bytes]] | None = None, **changed: object) -> bytes:
    """Return a chat request."""
    return request_bytes(PATH, headers=headers, body=orjson.dumps({**ASKED, **changed}))


def said(answer: Answer) -> str:
    """Return the text of an answer, streamed or not."""
    if (answer.header(b"content-type") or b"").startswith(b"text/event-stream"):
        return text_of(answer.body)
    text: str = orjson.loads(answer.body)["choices"][0]["message"]["content"]
    return text


def error_of(answer: Answer) -> dict[str, Any]:
    """Return the error that an answer consists of, or that its stream ends in."""
    if (answer.header(b"content-type") or b"").startswith(b"text/event-stream"):
        last = answer.body.rstrip(b"\n").rpartition(b"\n\n")[2]
        found = orjson.loads(last.removeprefix(b"data: "))["error"]
    else:
        found = orjson.loads(answer.body)["error"]
    error: dict[str, Any] = found
    return error


def in_order(*answers: Answering) -> Answering:
    """Answer the first request as the first says, and so on; the last from then on."""
    asked = 0

    async def answer(exchange: Exchange, request: Request) -> None:
        nonlocal asked
        asked += 1
        await answers[min(asked, len(answers)) - 1](exchange, request)

    return answer


def routing_of(proxy: Rig) -> RoutingMiddleware:
    """Return the layer that routes."""
    running = proxy.app._running
    assert running is not None
    layer: object = running.app
    while not isinstance(layer, RoutingMiddleware):
        inner = layer.app  # type: ignore[attr-defined]
        layer = getattr(inner, "__self__", inner)  # a method stands for its layer
    return layer


def server_named(proxy: Rig, name: str) -> Server:
    """Return what the proxy knows of a server."""
    found = routing_of(proxy).means.router.registry.find(name)
    assert found is not None
    return found


async def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition that somebody else brings about."""
    async with patience(what, seconds):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


async def at_rest(proxy: Rig) -> None:
    """Wait until nothing is left of any request: no slot, no place, no probe, no kept byte."""
    means = routing_of(proxy).means

    def left() -> list[str]:
        found = [f"{means.room.used} kept bytes"] if means.room.used else []
        if means.places.waiting or means.places._waiting:
            found.append("somebody who waits for a place")
        if proxy.sample("inflight_requests"):
            found.append("a request that is counted")
        for server in means.router.registry.servers:
            pool = server.transport.statistics()
            if server.inflight or proxy.sample("upstream_inflight", upstream=server.name):
                found.append(f"a request of {server.name}")
            if server.breaker._probing:
                found.append(f"a probe of {server.name}")
            if pool["open"] != pool["idle"] or pool["waiting"]:
                found.append(f"a connection of {server.name}: {pool}")
        return found

    try:
        await until(lambda: not left(), "everything was given back")
    except AssertionError:
        raise AssertionError(f"this is left: {left()}") from None


def half_open(server: Server) -> None:
    """Have a server's breaker as it is some time after it opened: one call may find out."""
    for _ in range(REFUSED_IN_A_ROW):
        server.breaker.failed(probe=False, refused=True)
    assert server.breaker.state == "open"
    server.breaker._opened_at -= LONGEST_REST
    assert server.breaker.state == "half-open"
