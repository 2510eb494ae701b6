"""Give the body back to an app that is not ours.

A layer that is used on its own stands in front of a foreign app, which expects to receive the
body itself.

Reads:  body, going_out
Writes: (nothing)
Raises: (nothing)
"""

from collections.abc import AsyncIterator, Iterable

from llmproxy.context import get_context
from llmproxy.records import Upload
from llmproxy.types import ASGIApp, Header, Message, Receive, Scope, Send


class ReplayMiddleware:
    """What the body layer took out is put back in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx = get_context(scope)
        body = ctx.going_out
        if body is not ctx.body and isinstance(body, bytes):
            scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
        messages = _messages(body if body is not None else b"")

        async def receive_replayed() -> Message:
            async for message in messages:
                return message
            return await receive()

        await self.app(scope, receive_replayed, send)


def _with_length(headers: Iterable[Header], length: int) -> list[Header]:
    said = b"%d" % length
    return [(name, said if name == b"content-length" else value) for name, value in headers]


async def _messages(body: bytes | Upload) -> AsyncIterator[Message]:
    if isinstance(body, bytes):
        yield {"type": "http.request", "body": body, "more_body": False}
        return
    async for piece in body:
        yield {"type": "http.request", "body": piece, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False}
