"""The bodies of requests to the admin API: small, JSON, and in time."""

import asyncio
from typing import Any

from llmproxy import codec
from llmproxy.errors import (
    ClientGone,
    InvalidJson,
    InvalidRequest,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedEncoding,
)
from llmproxy.types import Receive

LARGEST = 64 * 1024  # bytes
WITHIN = 10.0  # seconds


async def read_body(receive: Receive, fields: dict[bytes, bytes]) -> bytes:
    """Return the whole body of a request."""
    if fields.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
        raise UnsupportedEncoding("Send the request body without a Content-Encoding.")
    said = fields.get(b"content-length", b"")
    if said.isdigit() and int(said) > LARGEST:
        raise _too_large()
    try:
        async with asyncio.timeout(WITHIN):
            return await _gather(receive)
    except TimeoutError:
        raise RequestTimeout(f"The request body did not arrive within {WITHIN:g} s.") from None


def as_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; an empty body is an empty one."""
    if not body.strip():
        return {}
    try:
        given = codec.loads(body)
    except codec.NotJson:
        # Not chained: the error holds the document.
        raise InvalidJson("The request body is not valid JSON.") from None
    if not isinstance(given, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return given


async def _gather(receive: Receive) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client left while it was sending its request.")
        body += message.get("body", b"")
        if len(body) > LARGEST:
            raise _too_large()
        more = message.get("more_body", False)
    return bytes(body)


def _too_large() -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {LARGEST} bytes.")
