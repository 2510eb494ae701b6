"""From settings to a running proxy: builds what the layers need, starts and closes it."""

import asyncio
import hashlib
import importlib
import logging
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from llmproxy.admin.health import Pages
from llmproxy.admin.keys import AdminKey
from llmproxy.forward import Forward
from llmproxy.logs import AccessLog, HostLog
from llmproxy.metrics import Metrics
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.routing.health import Health
from llmproxy.routing.rotation import Rotation, Server
from llmproxy.settings import Settings
from llmproxy.stack import Frame, Layer, build
from llmproxy.stalls import Stalls
from llmproxy.transport.connect import transport_for
from llmproxy.types import ASGIApp, Receive, Scope, Send

LAG_PERIOD = 0.1  # seconds between two looks at how late the event loop is

log = logging.getLogger("llmproxy")

_apps: "weakref.WeakSet[LLMProxy]" = weakref.WeakSet()


class LLMProxy:
    """The ASGI app. Starts itself on the first request of each event loop it is used on."""

    def __init__(self, settings: Settings, *, access_log: AccessLog | None = None) -> None:
        self.settings = settings
        self.draining = False
        self.metrics = Metrics()
        self._access_log = access_log or HostLog()
        self._layers = [layer_named(name) for name in settings.middleware]
        self._mark = mark_of(settings)
        self._running: Running | None = None
        _apps.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = self._running
        if running is None or running.loop is not asyncio.get_running_loop():
            running = self.start()
        if scope["type"] == "http":
            await running.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not served here"})

    def start(self) -> "Running":
        """Make what belongs to the running event loop."""
        settings = self.settings
        stalls = Stalls(settings.clocks.write)
        servers = tuple(
            Server(upstream, transport_for(upstream)) for upstream in settings.upstreams
        )
        health = Health(servers, self.metrics)
        trusted_proxies = TrustedProxies(settings.trusted_proxies)
        admin_key = AdminKey(settings.admin_key.get_secret_value() if settings.admin_key else None)
        pages = Pages(
            health=health,
            metrics=self.metrics,
            admin_key=admin_key,
            open_to_all=settings.on_loopback,
            draining=lambda: self.draining,
        )
        frame = Frame(
            metrics=self.metrics,
            access_log=self._access_log,
            trusted_proxies=trusted_proxies,
            paths=Paths(settings.upstreams),
            pages=pages.by_path(),
            admin_key=admin_key,
            mark=self._mark,
            cors_origins=settings.cors_origins,
            max_body=settings.max_body,
            max_upload=settings.max_upload,
            body_timeout=settings.clocks.body,
        )
        forward = Forward(
            rotation=Rotation(servers),
            clocks=settings.clocks,
            stalls=stalls,
            metrics=self.metrics,
            trusted_proxies=trusted_proxies,
            mark=self._mark,
        )
        app = build(frame, self._layers, forward)
        loop = asyncio.get_running_loop()
        self._running = running = Running(loop, app, servers, health, stalls)
        running.supervisor = loop.create_task(self._supervise(running), name="llmproxy")
        return running

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. The app can be used again."""
        running = self._running
        if running is None or running.loop is not asyncio.get_running_loop():
            return
        self._running = None
        assert running.supervisor is not None
        running.supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await running.supervisor

    async def _supervise(self, running: "Running") -> None:
        """Live as long as the loop or until `aclose`; whichever ends it, everything is closed."""
        try:
            while True:
                due = running.loop.time() + LAG_PERIOD
                await asyncio.sleep(LAG_PERIOD)
                self.metrics.lag(max(0.0, running.loop.time() - due))
        finally:
            running.stalls.close()
            running.health.close()
            for server in running.servers:
                await server.transport.aclose()
            # Closed sockets are let go in the next turn of the loop; a loop that ends before
            # would warn of them.
            await asyncio.sleep(0)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.aclose()
                self._access_log.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


@dataclass(slots=True)
class Running:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    app: ASGIApp
    servers: tuple[Server, ...]
    health: Health
    stalls: Stalls
    supervisor: asyncio.Task[None] | None = None


def create_app(settings: Settings | None = None) -> LLMProxy:
    """Return the proxy as an ASGI app; its settings come from the environment unless passed."""
    return LLMProxy(settings if settings is not None else Settings.load())


@asynccontextmanager
async def lifespan(host: Any) -> AsyncIterator[None]:
    """Close every proxy that was mounted in a host when the host stops.

    For hosts that do not pass the lifespan on: `Starlette(lifespan=llmproxy.lifespan)`.
    """
    try:
        yield
    finally:
        for app in list(_apps):
            await app.aclose()


def layer_named(name: str) -> Layer:
    """Return a layer of the operator's own, by `package.module:Class`."""
    module, _, attribute = name.partition(":")
    layer: Layer = getattr(importlib.import_module(module), attribute)
    return layer


def mark_of(settings: Settings) -> bytes:
    """Return what we write into Via: the same in all workers, and in no other proxy."""
    urls = [
        f"{each.scheme}://{each.host}:{each.port}{each.path}{each.root}"
        for each in settings.upstreams
    ]
    told_apart_by = [socket.gethostname(), settings.host, str(settings.port), *urls]
    return (
        b"llmproxy-" + hashlib.sha256("\n".join(told_apart_by).encode()).hexdigest()[:12].encode()
    )
