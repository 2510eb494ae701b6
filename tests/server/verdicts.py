"""What a server makes of raw bytes."""

from dataclasses import dataclass

from tests.support.client import raw_client, request_bytes
from tests.support.wire import patience

ALIVE = request_bytes(b"/v1/models", method=b"GET", body=None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a request was answered."""

    status: int | None  # None when the connection was closed without a word
    closed: bool
    said: bytes


async def verdict(port: int, raw: bytes, *, seconds: float = 10.0) -> Verdict:
    """Send a request that must be turned away; return the answer up to the connection's end."""
    async with raw_client(port=port) as client:
        client.send(raw)
        async with patience(f"{raw[:80]!r} was answered and the connection closed", seconds):
            said = await client.rest()
    status = int(said[9:12]) if said.startswith(b"HTTP/1.1 ") else None
    return Verdict(status, True, said)


async def still_serves(port: int) -> bool:
    """Tell whether a healthy request is answered."""
    async with raw_client(port=port) as client:
        client.send(ALIVE)
        return (await client.answer(to=b"GET")).status == 200
