"""Model servers of a fleet: they answer our probes by themselves, and requests by a script.

async def failing(exchange: Exchange, request: Request) -> None:
    exchange.json({"error": {"message": "out of memory"}}, b"500 Internal Server Error")

async with fleet(failing, speaking("Hello"), retries=1) as (proxy, servers): ...
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.rig import Rig, proxied
from tests.support.upstream import Exchange, Request, ScriptedServer, scripted

Answering = Callable[[Exchange, Request], Awaitable[None]]


@dataclass
class Member:
    """One server of a fleet."""

    answering: Answering
    models: tuple[str, ...] = ("m",)
    options: str = ""  # of its upstream, as configuration has them
    name: str = ""
    url: str = ""  # where it is said to be, if not where it is
    server: ScriptedServer | None = None

    def __post_init__(self) -> None:
        self.asked: list[Request] = []  # but for probes

    async def script(self, exchange: Exchange) -> None:
        """Answer what a probe asks, and leave the rest to the script."""
        request = await exchange.request()
        if request.method == b"GET" and request.target == b"/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "vllm"} for name in self.models]
            exchange.json({"object": "list", "data": models})
        elif request.method == b"GET" and request.target == b"/health":
            exchange.json({})
        elif request.method == b"GET" and request.target == b"/metrics":
            exchange.json({}, b"404 Not Found")
        else:
            self.asked.append(request)
            await self.answering(exchange, request)


@asynccontextmanager
async def fleet(
    *members: Answering | Member, preset: str = "http", **settings: Any
) -> AsyncIterator[tuple[Rig, list[Member]]]:
    """Run servers named a, b, c... and a proxy that routes among them, in their order.

    They are said to be of the kind `preset`.
    """
    those = [each if isinstance(each, Member) else Member(each) for each in members]
    async with AsyncExitStack() as stack:
        configured = []
        for name, member in zip("abcdefgh", those, strict=False):
            member.name = member.name or name
            member.server = await stack.enter_async_context(scripted(member.script))
            url = (member.url or member.server.url).replace("http", preset)
            configured.append(f"{member.name}={url}{member.options}")
        asked = {"middleware": "routing", "routing": "round_robin", **settings}
        rig = await stack.enter_async_context(proxied(*configured, **asked))
        yield rig, those


def asked_for(request: Request) -> dict[str, Any]:
    """Return the body of a request."""
    body: dict[str, Any] = orjson.loads(request.body)
    return body


def event(delta: object, finish: str | None = None, **more: object) -> bytes:
    """Return one event of a chat stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    about = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: %b\n\n" % orjson.dumps({**about, "choices": [choice], **more})


DONE = b"data: [DONE]\n\n"


def words_of(text: str) -> list[str]:
    """Return a text in pieces, as a model would say it."""
    words = text.split(" ")
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)]


def speaking(text: str, *, model: str = "m") -> Answering:
    """Say a text: as a stream when that is asked for, after what the caller has of it."""

    async def answer(exchange: Exchange, request: Request) -> None:
        asked = asked_for(request)
        last = (asked.get("messages") or [{}])[-1]
        begun = last.get("content", "") if last.get("role") == "assistant" else ""
        assert text.startswith(begun), "asked to go on with another text"
        rest = text[len(begun) :]
        if not asked.get("stream"):
            message = {"role": "assistant", "content": rest}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            exchange.json({"object": "chat.completion", "model": model, "choices": [choice]})
            return
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for word in words_of(rest) if rest else []:
            exchange.chunk(event({"content": word}))
        exchange.chunk(event({}, "stop"))
        exchange.chunk(DONE)
        exchange.end()

    return answer


def failing(status: bytes, *, body: object = None, headers: bytes = b"") -> Answering:
    """Answer with an error."""

    async def answer(exchange: Exchange, request: Request) -> None:
        said = orjson.dumps(body or {"error": {"message": "it failed", "code": "engine_said"}})
        exchange.send(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, headers, len(said), said)
        )

    return answer


async def dropping(exchange: Exchange, request: Request) -> None:
    """Drop the connection."""
    exchange.reset()


async def silent(exchange: Exchange, request: Request) -> None:
    """Say nothing."""
    await exchange.closed()


def breaking(text: str, how: Callable[[Exchange], None]) -> Answering:
    """Begin to say a text, and then break."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for word in words_of(text):
            exchange.chunk(event({"content": word}))
        for _ in range(50):  # everything runs in one loop: by then the client has it
            await asyncio.sleep(0)
        how(exchange)
        await exchange.closed()

    return answer


def text_of(stream: bytes) -> str:
    """Return what a stream has said, as a client would put it together."""
    events = [
        orjson.loads(line[6:])
        for line in stream.split(b"\n")
        if line.startswith(b"data: ") and line != b"data: [DONE]"
    ]
    choices = (choice for each in events for choice in each.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)
