"""Let in whom we know, and hold them to what they may do.

Two layers. The gate stands before the body is read: a caller whom it refuses has sent the head
in vain and nothing else. What depends on the body is checked by the second, after it was read.

Reads:  body, client, endpoint, fields, inference, path, principal
Writes: principal
Raises: AddressNotAllowed, InvalidRequest, ModelNotAllowed, RouteNotAllowed, StoreUnavailable,
        Unauthenticated
"""

from urllib.parse import quote

from llmproxy.auth.authenticator import Authenticator, Call
from llmproxy.auth.permissions import check_length, check_model, check_route
from llmproxy.auth.signatures import check_content
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import present
from llmproxy.types import ASGIApp, Receive, Scope, Send


class AuthMiddleware:
    """Ask who is calling before a byte of the body is read."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self.app = app
        self.authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx = get_context(scope)
        principal = await self.authenticator.authenticate(call_of(scope, ctx))
        endpoint = present(ctx.endpoint, "endpoint")
        if endpoint.management or principal.routes:
            check_route(principal, endpoint, present(ctx.path, "path"))
        ctx.principal = principal
        await self.app(scope, receive, send)


class PermissionMiddleware:
    """Compare what is asked for with what the caller may have."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx = get_context(scope)
        principal = ctx.principal
        if principal is not None:
            if principal.method == "hmac":
                check_content(ctx.fields, ctx.body)
            if principal.models or principal.max_tokens is not None:
                endpoint = present(ctx.endpoint, "endpoint")
                check_model(principal, present(ctx.path, "path"), ctx.inference, ctx.body)
                check_length(principal, endpoint, ctx.inference)
        await self.app(scope, receive, send)


def call_of(scope: Scope, ctx: RequestContext) -> Call:
    """Return what tells who is calling."""
    peer = scope.get("client")
    target: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope.get("query_string", b"")
    if query:
        target = target + b"?" + query
    return Call(
        scope["headers"],
        ctx.fields,
        scope["method"],
        target,
        peer[0] if peer else None,
        ctx.client,
    )
