"""Small ASGI apps, and a client of our own connections in front of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llmproxy.server.bounds import Bounds
from llmproxy.types import Header, Message, Receive, Scope, Send
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.rig import served_here

GET = request_bytes(b"/", method=b"GET", body=None)
POST = request_bytes(b"/")
HEAD = request_bytes(b"/", method=b"HEAD", body=None)
OLD = b"GET / HTTP/1.0\r\n\r\n"


def start(status: int = 200, *headers: Header) -> Message:
    """Return the message that begins an answer."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    """Return a message with a piece of the body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


@dataclass
class Saying:
    """Reads the request, says its messages, and raises what it finds among them."""

    messages: list[Message | Exception]
    read: bool = True
    scopes: list[Scope] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    cancelled: int = 0
    ended: int = 0  # by itself or not

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        try:
            if self.read:
                self.bodies.append(await read_body(receive))
            for message in self.messages:
                if isinstance(message, Exception):
                    raise message
                await send(dict(message))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1


async def read_body(receive: Receive) -> bytes:
    """Return the whole body."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def saying(*messages: Message | Exception, read: bool = True) -> Saying:
    """Return an app that says this to everybody."""
    return Saying(list(messages), read)


def hello() -> Saying:
    """Return an app that is polite."""
    return saying(start(200, (b"content-length", b"5")), body(b"hello"))


@asynccontextmanager
async def asking(app: Any, **bounds: Any) -> AsyncIterator[RawClient]:
    """Connect to an app that is served with these bounds."""
    async with (
        served_here(app, bounds=Bounds(**bounds), lifespan="off") as port,
        raw_client(port=port) as client,
    ):
        yield client
