"""Answers of our own pages."""

from llmproxy import codec
from llmproxy.types import Header, Send


async def answer(
    send: Send, status: int, body: bytes, kind: bytes, extra: tuple[Header, ...] = ()
) -> None:
    """Send a whole answer."""
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def answer_json(
    send: Send, status: int, value: object, extra: tuple[Header, ...] = ()
) -> None:
    """Send a JSON answer."""
    await answer(send, status, codec.dumps(value), b"application/json", extra)
