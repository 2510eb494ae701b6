"""What the ways of all requests over the servers have in common."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from llmproxy.context import RequestContext
from llmproxy.errors import present
from llmproxy.metrics import Metrics
from llmproxy.records import Ending
from llmproxy.routing.kept import KeptStream, Room
from llmproxy.routing.places import Places
from llmproxy.routing.router import Router

Rescue = Literal["off", "same_model", "fallback"]


@dataclass(frozen=True, slots=True)
class Means:
    """What all requests are sent on their way with."""

    router: Router
    refresh: Callable[[], Awaitable[None]]
    """Has every server asked anew for its models."""

    places: Places
    room: Room
    rescue: Rescue
    first_token: float
    """Seconds after which a stream is tried elsewhere; 0 = never."""

    comment: float
    """Seconds after which a stream that waits for a server gets a comment; 0 = never."""

    total: float
    """Seconds after which a request must be over; 0 = never."""

    metrics: Metrics

    def keeps(self, ctx: RequestContext) -> KeptStream | None:
        """Return what keeps a stream, if it could be gone on with."""
        return KeptStream(self.room) if self.why_not(ctx) is None else None

    def why_not(self, ctx: RequestContext) -> str | None:
        """Return in one word why a stream could not be gone on with; None when it could."""
        if self.rescue == "off":
            return "off"
        if present(ctx.inference, "inference").choices != 1:
            return "choices"
        text = present(ctx.endpoint, "endpoint").ending is Ending.CHAT
        if not text or not isinstance(ctx.body, bytes):
            return "kind"
        return None if len(self.router.registry.servers) > 1 else "nobody"
