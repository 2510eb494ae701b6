"""The servers of a deployment, to be looked at by operators, and drained.

What is told of a server is its state: neither its address nor what it is sent for a key.
"""

from collections.abc import Mapping

from llmproxy.admin.audit import Actor, AuditLog
from llmproxy.admin.key_register import as_errors
from llmproxy.errors import InvalidRequest, NotFound
from llmproxy.routing.drains import Drains
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server

Document = dict[str, object]


class ServerRegister:
    """The registry of this process, and the drains of all of them."""

    def __init__(
        self, registry: Registry, drains: Drains, audit: AuditLog, *, everywhere: bool = True
    ) -> None:
        """`everywhere` tells whether what is kept of a drain reaches every worker."""
        self._registry = registry
        self._drains = drains
        self._audit = audit
        self._everywhere = everywhere

    def documents(self) -> list[Document]:
        """Return all servers that are in use."""
        return [_of(server) for server in self._registry.servers]

    def document(self, name: str) -> Document:
        """Return one server."""
        return _of(self._found(name))

    async def change(self, actor: Actor, name: str, given: Mapping[str, object]) -> Document:
        """Change a server as a document asks for it."""
        server = self._found(name)
        if unknown := given.keys() - {"draining"}:
            raise InvalidRequest("Only `draining` can be changed.", param=min(unknown)[:40])
        draining = given.get("draining")
        if not isinstance(draining, bool):
            raise InvalidRequest("`draining` must be true or false.", param="draining")
        if not self._everywhere:
            raise InvalidRequest(
                "With several workers LLMPROXY_STORE must be redis://... or sqlite:///...: only the"
                " worker that was asked would drain the upstream."
            )
        with as_errors():
            action = "drain" if draining else "undrain"
            async with self._audit.change(actor, action, name, {}, what="upstream"):
                await self._drains.put(name, draining)
        return _of(server)

    def _found(self, name: str) -> Server:
        server = self._registry.find(name)
        if server is None:
            raise NotFound("There is no upstream of this name.", param="name")
        return server


def _of(server: Server) -> Document:
    load = server.load
    return {
        "name": server.name,
        "preset": server.upstream.preset,
        "up": server.up,
        "detail": server.detail,
        "draining": server.draining,
        "breaker": server.breaker.state,
        "inflight": server.inflight,
        "models": list(server.models) if server.models is not None else None,
        "load": None
        if load is None
        else {"running": load.running, "waiting": load.waiting, "kv_use": round(load.kv_use, 4)},
        "weight": server.upstream.weight,
        "max_inflight": server.upstream.max_inflight,
        "tags": sorted(server.upstream.tags),
    }
