"""Turn new work away while the process has more than it can do.

Stands before the body is read and before anybody is asked for a key: what is refused here
costs next to nothing. Our own pages are answered further out.

Reads:  (nothing)
Writes: (nothing)
Raises: Overloaded
"""

from llmproxy.errors import Overloaded
from llmproxy.rate_limit.pressure import Pressure
from llmproxy.types import ASGIApp, Receive, Scope, Send

RETRY_AFTER = 2  # seconds; twice what it takes to notice that the pressure is over


class SheddingMiddleware:
    """Requests that are at work go on; new ones are refused."""

    def __init__(self, app: ASGIApp, *, pressure: Pressure) -> None:
        self.app = app
        self.pressure = pressure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        pressure = self.pressure
        if pressure.shedding:
            raise Overloaded("The proxy is overloaded.", retry_after=RETRY_AFTER)
        pressure.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            pressure.running -= 1
