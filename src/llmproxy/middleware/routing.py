"""Send each request where it can be answered, and elsewhere when that fails.

Reads:  endpoint, path
Writes: (nothing)
Raises: ModelNotFound
"""

from collections.abc import Awaitable

from llmproxy import codec
from llmproxy.attempts import travel
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import present
from llmproxy.means import Means
from llmproxy.protocol.endpoints import MODELS
from llmproxy.routing.catalogue import Catalogue
from llmproxy.types import ASGIApp, Receive, Scope, Send


class RoutingMiddleware:
    """Finds a server, and another one."""

    def __init__(self, app: ASGIApp, *, means: Means, catalogue: Catalogue) -> None:
        self.app = app
        self.means = means
        self.catalogue = catalogue

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request. No coroutine, because there is one further in."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        ctx = get_context(scope)
        if ctx.endpoint is MODELS and scope["method"] in ("GET", "HEAD"):
            return self._list_models(scope, receive, ctx, send)
        return travel(self.means, self.app, scope, receive, send, ctx)

    async def _list_models(
        self, scope: Scope, receive: Receive, ctx: RequestContext, send: Send
    ) -> None:
        listed = await self.catalogue.answer(present(ctx.path, "path"))
        if listed is None:
            await travel(self.means, self.app, scope, receive, send, ctx)
        else:
            await _answer(send, listed)


async def _answer(send: Send, document: object) -> None:
    body = codec.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
