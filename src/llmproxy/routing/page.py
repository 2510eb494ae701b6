"""Fetch one page of an upstream for ourselves: its health, its models, its load."""

from dataclasses import dataclass
from importlib.metadata import version

from llmproxy.errors import UpstreamBroken, UpstreamTimeout
from llmproxy.records import Upstream
from llmproxy.transport.interface import Call, Outgoing, Silence, Transport
from llmproxy.types import Header

_AGENT = b"llmproxy/" + version("llmproxy").encode()


@dataclass(frozen=True, slots=True)
class Page:
    """What came."""

    status: int
    body: bytes

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


async def fetch(
    transport: Transport,
    upstream: Upstream,
    path: str,
    *,
    within: float,
    at_most: int,
    accept: bytes = b"application/json",
) -> Page:
    """Return a page of `at_most` bytes; `within` seconds for each step (0 = for ever)."""
    headers: list[Header] = [
        (b"host", upstream.authority.encode()),
        (b"accept", accept),
        (b"accept-encoding", b"identity"),
        (b"user-agent", _AGENT),
        *upstream.credentials,
    ]
    outgoing = Outgoing(b"GET", path.encode(), headers)
    call = await transport.open(outgoing, connect=within, answer=within)
    try:
        return Page(call.status, await _body(call, within, at_most))
    finally:
        call.close()


async def _body(call: Call, within: float, at_most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = await call.read(within)
        except Silence:
            raise UpstreamTimeout("The answer stopped half way.") from None
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > at_most:
            raise UpstreamBroken("The answer is too long for what was asked.")
