"""Whether we are alive, whether we can serve, and what is wrong if not.

`live` and `ready` are for machines: always open, no detail. The rest is for operators.
"""

from collections.abc import Callable, Mapping

from llmproxy import exposition
from llmproxy.admin.answers import answer, answer_json
from llmproxy.admin.api import Caller, nobody
from llmproxy.admin.keys import AdminKey
from llmproxy.errors import MethodNotAllowed, Unauthenticated
from llmproxy.metrics import Metrics
from llmproxy.records import Role
from llmproxy.routing.health import Health
from llmproxy.types import ASGIApp, Receive, Scope, Send

_LOOPBACK = ("127.", "::1", "::ffff:127.", "/")  # a path is a unix socket
_RETRY_LATER = ((b"retry-after", b"5"),)


class Pages:
    """Our own pages."""

    def __init__(
        self,
        *,
        health: Health,
        metrics: Metrics,
        admin_key: AdminKey,
        open_to_all: bool,
        draining: Callable[[], bool],
        caller: Caller = nobody,
    ) -> None:
        """`caller` returns who is calling with a key of its own, or None for nobody known."""
        self._health = health
        self._metrics = metrics
        self._admin_key = admin_key
        self._open_to_all = open_to_all
        self._draining = draining
        self._caller = caller

    def by_path(self) -> Mapping[bytes, ASGIApp]:
        """Return each page under its path."""
        return {
            b"/health/live": _get(self._live),
            b"/health/ready": _get(self._ready),
            b"/health": _get(self._summary),
            b"/health/upstreams": _get(self._upstreams),
            b"/metrics": _get(self._all_metrics),
        }

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer_json(send, 200, {"status": "ok"})

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._draining():
            await answer_json(send, 503, {"status": "draining"}, _RETRY_LATER)
            return
        await self._health.look()
        if self._health.ready:
            await answer_json(send, 200, {"status": "ok"})
        else:
            await answer_json(send, 503, {"status": "no healthy upstream"}, _RETRY_LATER)

    async def _summary(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._check(scope)
        probes = await self._health.look()
        up = sum(probe.ok for probe in probes.values())
        status = "draining" if self._draining() else "ok" if up == len(probes) else "degraded"
        body = {
            "status": status,
            "upstreams": {"up": up, "configured": len(probes)},
            "parts": ["upstreams"],
        }
        await answer_json(send, 200 if up else 503, body)

    async def _upstreams(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._check(scope)
        probes = await self._health.look()
        connections = self._health.connections()
        body = {
            name: {
                "up": probe.ok,
                "detail": probe.detail,
                "models": probe.models,
                "seconds": round(probe.seconds, 4),
                "connections": connections[name],
            }
            for name, probe in probes.items()
            if name in connections  # it may have left meanwhile
        }
        await answer_json(send, 200, body)

    async def _all_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._check(scope)
        await answer(send, 200, self._metrics.render(), exposition.CONTENT_TYPE.encode())

    async def _check(self, scope: Scope) -> None:
        if self._open_to_all and _reached_over_loopback(scope):
            return
        if self._admin_key.opens(scope["headers"]):
            return
        who = await self._caller(scope)
        if who is None or who.role not in (Role.VIEWER, Role.ADMIN):
            raise Unauthenticated("This page needs the admin key, or one with the role viewer.")


def _reached_over_loopback(scope: Scope) -> bool:
    """Tell whether the request came in over an address that only this host can reach.

    The configured bind alone does not tell: a host that mounts us binds where it likes.
    """
    server = scope.get("server")
    return server is not None and str(server[0]).startswith(_LOOPBACK)


def _get(page: ASGIApp) -> ASGIApp:
    async def only_get(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(
                "This page can only be read.", headers=[(b"allow", b"GET, HEAD")]
            )
        await page(scope, receive, send)

    return only_get
