"""Let in whom we know, and hold them to what they may do.

The layer stands before the body is read: a caller whom it refuses has sent the head in vain and
nothing else. What depends on the body is left to be checked when it has been read, for those
callers who are held to something. It is no coroutine where nothing has to be waited for: one costs
as much as the rest of it.

Reads:  body, client, endpoint, fields, inference, path, principal
Writes: check, principal
Raises: AddressNotAllowed, InvalidRequest, ModelNotAllowed, RouteNotAllowed, StoreUnavailable,
        Unauthenticated, UpstreamBroken
"""

from collections.abc import Awaitable
from typing import Any
from urllib.parse import quote

from llmproxy.auth.authenticator import Authenticator, Call
from llmproxy.auth.model_lists import filtered
from llmproxy.auth.permissions import check_address, check_length, check_model, check_route
from llmproxy.auth.signatures import check_content
from llmproxy.context import SCOPE_KEY, RequestContext, get_context
from llmproxy.errors import UpstreamBroken, present
from llmproxy.records import Principal
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send, watched

_NOBODY = (None, None)
LISTS = frozenset({b"/v1/models", b"/api/tags"})
LARGEST_LIST = 8 * 1024 * 1024  # bytes; a marketplace of a thousand models has about one MiB


class AuthMiddleware:
    """Ask who is calling before a byte of the body is read."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self.app = app
        self.authenticator = authenticator

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self.app
        if scope["type"] != "http":
            return app(scope, receive, send)

        ctx: RequestContext = scope.get(SCOPE_KEY) or get_context(scope)  # a call costs 0.1 us
        exchange = watched(scope)
        notes = exchange.notes(scope["headers"]) if exchange is not None else None
        if notes:
            known, before = notes.get(self, _NOBODY)
            again = self.authenticator.again
            if known is not None and again(known, ctx.client) is before:
                ctx.principal = before  # who has sent this very head, and was let in with it
                if before is not None and before.bound:
                    send = self._held_to(before, ctx, send)
                return app(scope, receive, send)
        return self._ask(ctx, notes, scope, receive, send)

    async def _ask(
        self,
        ctx: RequestContext,
        notes: dict[Any, Any] | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        call, endpoint = call_of(scope, ctx), present(ctx.endpoint, "endpoint")
        principal = await self.authenticator.identify(call)
        ctx.principal = principal  # whoever is refused now, too: the log says whose key it was
        check_address(principal, call.client)
        if endpoint.management or principal.routes:
            check_route(principal, endpoint, present(ctx.path, "path"))
        if notes is not None:
            notes[self] = self.authenticator.known(call), principal
        if principal.bound:
            send = self._held_to(principal, ctx, send)
        await self.app(scope, receive, send)

    def _held_to(self, principal: Principal, ctx: RequestContext, send: Send) -> Send:
        """Hold a caller to what it may have of what it asks for, once that has been read."""
        if ctx.inference is None:
            ctx.check = check
        else:
            check(ctx)  # the layer has been put behind the body, by somebody who has a frame
        return ListFilter(principal, send).send if principal.models and ctx.path in LISTS else send


def check(ctx: RequestContext) -> None:
    """Compare what is asked for with what the caller may have."""
    principal = present(ctx.principal, "principal")
    if principal.method == "hmac":
        check_content(ctx.fields, ctx.body)
    check_model(principal, present(ctx.path, "path"), ctx.inference, ctx.body)
    check_length(principal, present(ctx.endpoint, "endpoint"), ctx.inference)


class ListFilter:
    """Gathers a list of models and passes on what its reader may see of it."""

    def __init__(self, principal: Principal, send: Send) -> None:
        self._principal = principal
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if len(self._body) > LARGEST_LIST:
                raise UpstreamBroken("The list of models is too long to be read.")
            if not message.get("more_body", False):
                await self._pass_on(self._start)

    async def _pass_on(self, start: Message) -> None:
        body = filtered(self._body, self._principal)
        headers = [header for header in start["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


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
