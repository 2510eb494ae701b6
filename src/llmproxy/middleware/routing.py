"""Send each request where it can be answered, and elsewhere when that fails.

Reads:  body, endpoint, fields, inference, limit_lines, path, principal, started_at
Writes: (nothing)
Raises: ModelNotFound
"""

from collections.abc import Awaitable
from functools import partial

from llmproxy import codec
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import present
from llmproxy.journey import Journey, Means
from llmproxy.protocol.endpoints import MODELS
from llmproxy.protocol.request_options import deadline_of
from llmproxy.rate_limit.openai_headers import BUDGET_REACHED
from llmproxy.routing.catalogue import Catalogue
from llmproxy.routing.router import Wish
from llmproxy.routing.rules import Facts
from llmproxy.types import ASGIApp, Receive, Scope, Send


class RoutingMiddleware:
    """Finds a server, and another one."""

    def __init__(
        self, app: ASGIApp, *, means: Means, catalogue: Catalogue, total: float
    ) -> None:
        """`total` is when a request must be over, in seconds; 0 = never."""
        self.app = app
        self.means = means
        self.catalogue = catalogue
        self.total = total

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request. No coroutine, because there is one further in."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        ctx = get_context(scope)
        if ctx.endpoint is MODELS and scope["method"] in ("GET", "HEAD"):
            return self._list_models(scope, receive, ctx, send)
        return self._journey(scope, receive, ctx, send)

    def _journey(
        self, scope: Scope, receive: Receive, ctx: RequestContext, send: Send
    ) -> Awaitable[None]:
        deadline = deadline_of(ctx.started_at, ctx.fields, self.total)
        ask = partial(self.app, scope, receive)
        return Journey(self.means, ask, send, ctx, wish_of(scope, ctx), deadline).run()

    async def _list_models(
        self, scope: Scope, receive: Receive, ctx: RequestContext, send: Send
    ) -> None:
        listed = await self.catalogue.answer(present(ctx.path, "path"))
        if listed is None:
            await self._journey(scope, receive, ctx, send)
        else:
            await _answer(send, listed)


def wish_of(scope: Scope, ctx: RequestContext) -> Wish:
    """Return what matters of a request for where it goes."""
    body = ctx.body if ctx.body is not None else b""
    assert ctx.path is not None
    assert ctx.endpoint is not None
    assert ctx.inference is not None
    return Wish(
        scope["method"],
        ctx.path,
        ctx.fields,
        ctx.endpoint,
        ctx.inference,
        body if isinstance(body, bytes) else None,
        ctx.principal.id if ctx.principal is not None else None,
        partial(facts_of, ctx),
    )


def facts_of(ctx: RequestContext) -> Facts:
    """Return what rules may ask for."""
    asked = present(ctx.inference, "inference")
    who = ctx.principal
    return Facts(
        tier=who.tier if who is not None else None,
        team=who.team if who is not None else None,
        tags=who.tags if who is not None else frozenset(),
        model=asked.model,
        prompt_bytes=asked.prompt_bytes,
        body=ctx.body if isinstance(ctx.body, bytes) else b"",
        over_budget=BUDGET_REACHED in ctx.limit_lines,
    )


async def _answer(send: Send, document: object) -> None:
    body = codec.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
