"""The admin API as it stands in the frame, with a store of its own behind it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmproxy.admin.api import AdminApi, Caller, nobody
from llmproxy.admin.audit import AuditLog
from llmproxy.admin.key_register import KeyRegister
from llmproxy.admin.keys import AdminKey
from llmproxy.admin.server_register import ServerRegister
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.keys import KeyEntry, keys
from llmproxy.auth.secrets import digest_of, sha256_of
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.records import Principal, Upstream
from llmproxy.routing.drains import Drains
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server
from llmproxy.settings.engines import FIELDS
from llmproxy.stack import Frame, build
from llmproxy.store.interface import Store, Unavailable
from llmproxy.store.memory import MemoryStore
from llmproxy.types import ASGIApp, Header, Receive, Scope, Send
from tests.support.asgi import Exchange, drive

ADMIN_KEY = "admin-Zk3v8Qp1"
KEY: list[Header] = [(b"authorization", b"Bearer " + ADMIN_KEY.encode())]


class FailingStore(MemoryStore):
    """Can be told what not to do any more."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[str] = set()
        self.before_put: Callable[[], Any] | None = None

    async def get(self, name: str) -> bytes | None:
        self._answer("get")
        return await super().get(name)

    async def put(self, name: str, value: bytes, *, within: float | None = None) -> None:
        self._answer("put")
        if self.before_put is not None:
            await self.before_put()
        await super().put(name, value, within=within)

    async def names(self, prefix: str) -> list[str]:
        self._answer("names")
        return await super().names(prefix)

    async def append(self, name: str, entry: bytes, *, keep: int) -> None:
        self._answer("append")
        await super().append(name, entry, keep=keep)

    async def entries(self, name: str, *, last: int) -> list[bytes]:
        self._answer("entries")
        return await super().entries(name, last=last)

    async def read(self, meters: Any) -> Any:
        self._answer("read")
        return await super().read(meters)

    def _answer(self, what: str) -> None:
        if what in self.refuses:
            raise Unavailable


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back."""

    status: int | None
    document: Any
    exchange: Exchange

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        found: dict[str, Any] = self.document["error"]
        return found


@dataclass(frozen=True, slots=True)
class Office:
    """Whom to ask, and what is behind."""

    app: ASGIApp
    api: AdminApi
    store: Store
    issued: IssuedKeys
    limiter: Limiter

    async def ask(
        self, method: str, path: str, document: object = None, **options: Any
    ) -> Answered:
        """Send one request, with the admin key unless told otherwise."""
        body = b"" if document is None else json.dumps(document).encode()
        path, _, query = path.partition("?")
        sent = {"headers": KEY, "body": body, "query": query.encode(), **options}
        seen = await drive(self.app, method=method, path=path, **sent)
        assert seen.raised is None, seen.raised
        return Answered(seen.status, json.loads(seen.body) if seen.body else None, seen)

    async def works(self, secret: str) -> bool:
        """Tell whether somebody with this key would be let in, as far as time goes."""
        from llmproxy import clock

        digest = digest_of(sha256_of(secret.encode()), await self.issued.digest_key())
        found = await self.issued.with_digest(digest)
        return found is not None and clock.wall() < found.until


async def not_ours(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a request went past the admin API")


def office(
    *,
    store: Store | None = None,
    admin_key: str | None = ADMIN_KEY,
    configured: str = "",
    limit: str = "",
    budget: str = "",
    caller: Caller = nobody,
    objections: Callable[[Mapping[str, Any]], list[str]] = lambda fields: [],
    trusted: TrustedProxies | None = None,
    registry: Registry | None = None,
    everywhere: bool = True,
    notice: str | None = None,
) -> Office:
    """Build all of it over one store."""
    store = store or FailingStore()
    issued, audit = IssuedKeys(store), AuditLog(store)
    entries: tuple[KeyEntry, ...] = keys(configured, fields=FIELDS, environ={})
    limiter = Limiter(store, store, limits=limits(limit), budgets=budgets(budget))
    register = KeyRegister(
        issued,
        audit,
        fields=FIELDS,
        configured=lambda: entries,
        objections=objections,
        notice=notice,
    )
    registry = registry or Registry(_no_server)
    drains = Drains(store, registry)
    api = AdminApi(
        admin_key=AdminKey(admin_key),
        register=register,
        servers=ServerRegister(registry, drains, audit, everywhere=everywhere),
        audit=audit,
        limiter=limiter,
        caller=caller,
    )
    frame = Frame(pages=api.pages(), trusted_proxies=trusted or TrustedProxies())
    return Office(build(frame, [], not_ours), api, store, issued, limiter)


def _no_server(upstream: Upstream) -> Server:
    raise AssertionError("a registry of this office has no servers")


def known(principal: Principal | None) -> Caller:
    """Return who takes every request for one of this caller."""

    async def caller(scope: Scope) -> Principal | None:
        return principal

    return caller
