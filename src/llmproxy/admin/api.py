"""The admin API: keys, what they have used, upstreams, and who has changed what.

Rule 1: without a configured admin key nothing of it is there, for anybody.
Rule 2: who asks is settled before anything else is: strangers learn no path and send no body.
Rule 3: a stranger is 401. A store that cannot be asked is 503, and never a stranger.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from llmproxy.admin.answers import answer_json
from llmproxy.admin.audit import Actor, AuditLog
from llmproxy.admin.key_register import KeyRegister, as_errors
from llmproxy.admin.keys import AdminKey
from llmproxy.admin.openapi import document
from llmproxy.admin.request_body import as_object, read_body
from llmproxy.admin.server_register import ServerRegister
from llmproxy.auth.permissions import check_route
from llmproxy.auth.signatures import check_content
from llmproxy.context import get_context
from llmproxy.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    present,
)
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.plans import Line
from llmproxy.records import Endpoint, Principal, Role
from llmproxy.store.interface import Reading
from llmproxy.types import ASGIApp, Receive, Scope, Send

AREA = b"/admin/"
AT_ONCE = 50  # callers whose limits are read together
MOST_ENTRIES = 1000  # of the audit log in one answer

Caller = Callable[[Scope], Awaitable[Principal | None]]

_ADMIN = Endpoint("admin")


class Request(NamedTuple):
    """What a page needs to know of a request."""

    actor: Actor
    name: str  # of what the path names, if it names something
    scope: Scope
    body: bytes


Page = Callable[[Request], Awaitable[tuple[int, object]]]


async def nobody(scope: Scope) -> Principal | None:
    """Know no caller: the admin key alone opens."""
    return None


class AdminApi:
    """Everything under /admin/."""

    def __init__(
        self,
        *,
        admin_key: AdminKey,
        register: KeyRegister,
        servers: ServerRegister,
        audit: AuditLog,
        limiter: Limiter,
        caller: Caller = nobody,
    ) -> None:
        """`caller` returns who is calling with a key of its own, or None for nobody known."""
        self._admin_key = admin_key
        self._register = register
        self._servers = servers
        self._audit = audit
        self._limiter = limiter
        self._caller = caller
        self.routes: Mapping[str, Mapping[str, Page]] = {
            "/admin/keys": {"GET": self._list, "POST": self._create},
            "/admin/keys/{name}": {"GET": self._look, "DELETE": self._revoke},
            "/admin/keys/{name}/rotate": {"POST": self._rotate},
            "/admin/usage": {"GET": self._usage},
            "/admin/upstreams": {"GET": self._upstreams},
            "/admin/upstreams/{name}": {"GET": self._upstream, "PATCH": self._change},
            "/admin/audit": {"GET": self._audited},
            "/admin/openapi.json": {"GET": self._described},
        }

    def pages(self) -> Mapping[bytes, ASGIApp]:
        """Return what is to be answered here; nothing where there is no admin key."""
        return {AREA: self} if self._admin_key.configured else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        path = present(ctx.path, "path")
        principal = await self._known(scope, path)
        pages, name = self._found(path)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in pages:
            allowed = sorted({*pages, *(["HEAD"] if "GET" in pages else [])})
            raise MethodNotAllowed(
                "This method is not served here.", headers=[(b"allow", ", ".join(allowed).encode())]
            )
        body = b"" if method == "GET" else await read_body(receive, ctx.fields)
        if principal is not None and principal.method == "hmac":
            check_content(ctx.fields, body)
        who = ("admin", "admin") if principal is None else (principal.name, principal.id)
        request = Request(Actor(*who, ctx.client), name, scope, body)
        status, value = await pages[method](request)
        await answer_json(send, status, value)

    async def _known(self, scope: Scope, path: bytes) -> Principal | None:
        """Return who has come in with a key of its own; None for the admin key itself."""
        if self._admin_key.opens(scope["headers"]):
            return None
        principal = await self._caller(scope)
        if principal is None or principal.role is not Role.ADMIN:
            raise Unauthenticated("This page needs the admin key.")
        check_route(principal, _ADMIN, path)
        return principal

    def _found(self, path: bytes) -> tuple[Mapping[str, Page], str]:
        parts = [unquote(part, errors="replace") for part in path.decode("latin-1").split("/")]
        for route, pages in self.routes.items():
            pattern = route.split("/")
            if len(pattern) == len(parts) and all(
                part == want or (want == "{name}" and part)
                for want, part in zip(pattern, parts, strict=True)
            ):
                return pages, parts[3] if len(parts) > 3 else ""
        raise NotFound("Nothing is served at this path.")

    async def _list(self, request: Request) -> tuple[int, object]:
        return 200, _list_of(await self._register.documents())

    async def _look(self, request: Request) -> tuple[int, object]:
        return 200, await self._register.document(request.name)

    async def _create(self, request: Request) -> tuple[int, object]:
        return 201, await self._register.create(request.actor, as_object(request.body))

    async def _rotate(self, request: Request) -> tuple[int, object]:
        given = as_object(request.body)
        return 200, await self._register.rotate(request.actor, request.name, given)

    async def _revoke(self, request: Request) -> tuple[int, object]:
        return 200, await self._register.revoke(request.actor, request.name)

    async def _usage(self, request: Request) -> tuple[int, object]:
        callers = await self._register.callers()
        found: list[object] = []
        for start in range(0, len(callers), AT_ONCE):
            several = callers[start : start + AT_ONCE]
            with as_errors():
                standing = await asyncio.gather(
                    *(self._limiter.standing(who) for _, who in several)
                )
            found += [
                {
                    "name": who.name,
                    "id": who.id,
                    "source": source,
                    "team": who.team,
                    "limits": [_limit(*each) for each in lines if each[0].kind == "limit"],
                    "budgets": [_limit(*each) for each in lines if each[0].kind != "limit"],
                }
                for (source, who), lines in zip(several, standing, strict=True)
            ]
        return 200, _list_of(found)

    async def _upstreams(self, request: Request) -> tuple[int, object]:
        return 200, _list_of(self._servers.documents())

    async def _upstream(self, request: Request) -> tuple[int, object]:
        return 200, self._servers.document(request.name)

    async def _change(self, request: Request) -> tuple[int, object]:
        given = as_object(request.body)
        return 200, await self._servers.change(request.actor, request.name, given)

    async def _audited(self, request: Request) -> tuple[int, object]:
        said = parse_qs(request.scope["query_string"].decode("latin-1")).get("last", ["100"])[-1]
        last = int(said) if said.isascii() and said.isdigit() and len(said) < 9 else 0
        if not 1 <= last <= MOST_ENTRIES:
            raise InvalidRequest(
                f"`last` must be a whole number from 1 to {MOST_ENTRIES}.", param="last"
            )
        with as_errors():
            return 200, _list_of(await self._audit.entries(last))

    async def _described(self, request: Request) -> tuple[int, object]:
        return 200, document(request.scope.get("root_path") or "/")


def _list_of(data: list[Any]) -> dict[str, object]:
    return {"object": "list", "data": data}


def _limit(line: Line, reading: Reading) -> dict[str, object]:
    amount = line.meter.limit
    resets_in = round(reading.resets_in, 3) if isfinite(reading.resets_in) else None
    return {
        "text": line.text,
        "kind": line.kind,
        "unit": line.unit,
        "amount": amount,
        "used": round(max(0.0, amount - reading.left), 6),
        "left": round(reading.left, 6),
        "resets_in": resets_in,
    }
