"""Which path gives which answer."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from llmproxy import codec
from llmproxy.demo_upstream import MODEL
from llmproxy.demo_upstream.embeddings import embeddings
from llmproxy.demo_upstream.generation import chat, completion
from llmproxy.demo_upstream.reply import Reply, Wrong
from llmproxy.types import Message, Receive, Scope, Send

LARGEST_BODY = 8 * 1024 * 1024  # bytes
_BORN = int(time.time())

Answer = Callable[[dict[str, Any], Reply], Coroutine[Any, Any, None]]

_ANSWERS: dict[str, Answer] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/embeddings": embeddings,
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request."""
    if scope["type"] != "http":
        return
    reply = Reply(send)
    method, path = scope["method"], scope["path"]
    try:
        if path == "/health" and method in ("GET", "HEAD"):
            await reply.json({"status": "ok"})
        elif path == "/v1/models" and method == "GET":
            await reply.json({"object": "list", "data": [_model()]})
        elif path.startswith("/v1/models/") and method == "GET":
            _check_model(path.removeprefix("/v1/models/"))
            await reply.json(_model())
        elif path in _ANSWERS and method == "POST":
            body = await _read_body(receive)
            await _unless_left(_ANSWERS[path](body, reply), receive)
        elif path in (*_ANSWERS, "/health", "/v1/models"):
            raise Wrong(405, f"{method} is not allowed here.", "method_not_allowed")
        else:
            raise Wrong(404, "The demo does not serve this path.", "not_found")
    except Wrong as exc:
        await reply.json({"error": exc.error}, exc.status)


async def _unless_left(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work, and stop it when the client leaves."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    leaving = asyncio.create_task(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
    if working.done():
        working.result()


async def _read_body(receive: Receive) -> dict[str, Any]:
    parts: list[bytes] = []
    more = True
    while more:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise Wrong(400, "The body is incomplete.", "invalid_request")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        if sum(map(len, parts)) > LARGEST_BODY:
            raise Wrong(413, "The body is too large for the demo.", "request_too_large")
    try:
        body = codec.loads(b"".join(parts))
    except codec.NotJson:
        raise Wrong(400, "The request body is not valid JSON.", "invalid_json") from None
    if not isinstance(body, dict):
        raise Wrong(400, "The request body must be a JSON object.", "invalid_request")
    _check_model(body.get("model"))
    return body


def _check_model(name: object) -> None:
    if name != MODEL:
        raise Wrong(404, f"The only model here is {MODEL}.", "model_not_found", "model")


def _model() -> dict[str, object]:
    return {"id": MODEL, "object": "model", "created": _BORN, "owned_by": "llmproxy"}
