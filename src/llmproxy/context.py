"""One object per request: what the layers have to tell each other.

Each field is assigned by the one layer that `WRITERS` names; a test reads the sources and
holds the table. Values are frozen records, so whoever reads a field can rely on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmproxy.errors import LayerMissing, ProxyError
from llmproxy.records import Endpoint, InferenceRequest, Principal, Upload, Usage
from llmproxy.types import Scope

if TYPE_CHECKING:
    from llmproxy.protocol.stream_tail import StreamTail
    from llmproxy.protocol.usage_tap import UsageTap
    from llmproxy.rate_limit.reservation import Reservation, Ticket
    from llmproxy.routing.course import Attempt

SCOPE_KEY = "llmproxy.context"


@dataclass(slots=True)
class RequestContext:
    """What is known about the request so far."""

    request_id: str
    """The caller's own, where it may be one; what every answer carries."""

    engine_id: str
    """What the model server gets: ours and random, so that no caller can name another's."""

    started_at: float
    """Monotonic seconds."""

    fields: dict[bytes, bytes]
    """The head as a mapping; of a field that was sent twice, the last."""

    client: str | None = None
    """The caller's address, as far as the proxies in between are trusted."""

    path: bytes | None = None
    """The raw path below what a host mounted us under."""

    endpoint: Endpoint | None = None
    """What the path stands for."""

    principal: Principal | None = None
    """Who is calling; None where nobody is asked."""

    body: bytes | Upload | None = None
    """The whole body, or the one that is still coming in."""

    check: "Callable[[RequestContext], None] | None" = None
    """To be called when it is known what is asked for; raises when that may not be."""

    inference: InferenceRequest | None = None
    """What is asked for; for an upload known as soon as its first parts were read."""

    status: int | None = None
    """What the response began with; None as long as nothing was sent."""

    sent: int = 0
    """Bytes of the body that went to the client."""

    complete: bool = False
    """The last byte was sent."""

    upstream: str | None = None
    """The server that was asked last."""

    attempts: int = 0
    """How often a server was asked."""

    first_byte_at: float | None = None
    """When the first byte of a body came from the upstream."""

    chunks: int = 0
    """How many reads the body came in."""

    tail: "StreamTail | None" = None
    """The end of the stream that has been begun; None for every other answer."""

    outgoing: bytes | None = None
    """The body as the model server gets it, where it is not the caller's own."""

    attempt: "Attempt | None" = None
    """Which server is asked now, and with what; None where nobody chooses one."""

    rescues: int = 0
    """How often another server has gone on with a stream."""

    limit_lines: bytes = b""
    """What an answer tells of the caller's limits: lines of its head, each with its end."""

    tap: "UsageTap | None" = None
    """Tells at any time what the request has used; None where nobody wants to know."""

    held: "Ticket | Reservation | None" = None
    """What the request was let in with."""

    settle: "Settle | None" = None
    """Settles that, to be called once the request has ended; None when it is not held any more,
    or whoever let it in does so without being called."""

    charged: Usage | None = None
    """What a caller who left is charged; None where that is what the tap has counted."""

    queued: float = 0.0
    """Seconds spent waiting for a place."""

    paused: float = 0.0
    """Seconds spent waiting for a server to take it, or between two attempts."""

    waited: float = 0.0
    """Seconds spent waiting for upstreams: what is left of the whole is our own overhead."""

    failure: ProxyError | None = None
    """Why the request was not completed."""

    @property
    def answering_model(self) -> str | None:
        """The model that was asked last, where somebody chose it: an alias or a fallback may be
        another one than was asked for. None: the one of the request."""
        return self.attempt.model if self.attempt is not None else None

    @property
    def going_out(self) -> bytes | Upload | None:
        """The body as the server that is asked now gets it."""
        if self.attempt is not None and self.attempt.body is not None:
            return self.attempt.body
        return self.outgoing if self.outgoing is not None else self.body


Settle = Callable[[RequestContext, Usage | None, bool], None]
"""Is given what the request has used, as far as somebody has counted, and whether it was left."""

WRITERS = {
    "client": "observe",
    "path": "entrance",
    "endpoint": "entrance",
    "principal": "auth",
    "check": "auth",
    "body": "body",
    "inference": "body",
    "status": "observe",
    "sent": "observe",
    "complete": "observe",
    "upstream": "forward",
    "attempts": "forward",
    "first_byte_at": "relay",
    "chunks": "relay",
    "tail": "relay",
    "outgoing": "usage",
    "attempt": "attempts",
    "rescues": "rescuing",
    "limit_lines": "rate_limit",
    "tap": "usage",
    "held": "rate_limit",
    "settle": "rate_limit",
    "charged": "rate_limit",
    "queued": "admission",
    "paused": "journey",
    "waited": "forward",
    "failure": "errors",
}


def settled(ctx: RequestContext, *, left: bool) -> Usage | None:
    """Settle what the request was let in with, if that is still to be done; return its usage."""
    usage = None
    try:
        if ctx.tap is not None:
            usage = ctx.tap.usage()
    finally:  # whatever an answer has in it
        settle = ctx.settle
        if settle is not None:
            settle(ctx, usage, left)
    return usage


def get_context(scope: Scope) -> RequestContext:
    """Return the context of this request."""
    try:
        return scope[SCOPE_KEY]  # type: ignore[no-any-return]
    except KeyError:
        raise LayerMissing("No request context: the observe layer must stand outermost.") from None
