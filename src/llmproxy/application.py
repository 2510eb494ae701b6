"""From settings to a running proxy: builds what the layers need, starts and closes it."""

import asyncio
import hashlib
import logging
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from llmproxy import clock
from llmproxy.admin.api import AdminApi, Caller, nobody
from llmproxy.admin.audit import AuditLog
from llmproxy.admin.health import Pages
from llmproxy.admin.key_register import KeyRegister
from llmproxy.admin.keys import AdminKey
from llmproxy.admin.server_register import ServerRegister
from llmproxy.appointments import Appointments
from llmproxy.assembly import assemble
from llmproxy.context import get_context
from llmproxy.engines import Engines
from llmproxy.errors import ProxyError, StoreUnavailable
from llmproxy.forward import Forward
from llmproxy.logs import AccessLog, HostLog
from llmproxy.metrics import Metrics
from llmproxy.middleware.auth import call_of
from llmproxy.middleware.shedding import SheddingMiddleware
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.rate_limit import cgroup
from llmproxy.rate_limit.pressure import Pressure
from llmproxy.records import Principal
from llmproxy.routing.drains import Drains
from llmproxy.routing.rotation import Rotation
from llmproxy.settings import Settings
from llmproxy.settings.engines import FIELDS
from llmproxy.settings.issuing import why_not_asked, why_not_issued
from llmproxy.stack import Frame, Part, build
from llmproxy.stalls import Stalls
from llmproxy.store.opening import prepare
from llmproxy.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("llmproxy")


class Closable(Protocol):
    """What a host's lifespan ends."""

    async def aclose(self) -> None:
        """Close what belongs to the running event loop."""


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


class LLMProxy:
    """The ASGI app. Starts itself on the first request of each event loop it is used on."""

    def __init__(
        self, settings: Settings, *, access_log: AccessLog | None = None, place: int = 0
    ) -> None:
        """`place` is which of several workers this is, from 0."""
        self.settings = settings
        self.draining = False
        self.metrics = Metrics()
        self.pressure = Pressure()
        self._place = place
        self._access_log = access_log or HostLog()
        self._mark = mark_of(settings)
        prepare(settings.store.url)
        self._running: Running | None = None
        to_be_closed(self)

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
        trusted_proxies = TrustedProxies(settings.trusted_proxies)
        engines = assemble(settings, self.metrics, trusted_proxies, self._place)
        registry, paths = engines.registry, Paths(settings.upstreams)
        registry.on_change.append(
            lambda: paths.learn(server.upstream for server in registry.servers)
        )
        drains = Drains(engines.store, registry)
        if settings.store.shared:
            engines.watches.append(drains.follow)
        admin_key = AdminKey(settings.admin_key.get_secret_value() if settings.admin_key else None)
        caller = caller_of(engines)
        pages = Pages(
            health=engines.health,
            metrics=self.metrics,
            admin_key=admin_key,
            caller=caller,
            open_to_all=settings.on_loopback,
            draining=lambda: self.draining,
        )
        frame = Frame(
            metrics=self.metrics,
            access_log=self._access_log,
            trusted_proxies=trusted_proxies,
            paths=paths,
            pages={**pages.by_path(), **self._admin(engines, admin_key, caller, drains).pages()},
            admin_key=admin_key,
            keys_decide=engines.authenticator is not None,
            mark=self._mark,
            cors_origins=settings.cors_origins,
            max_body=settings.max_body,
            max_upload=settings.max_upload,
            body_timeout=settings.clocks.body,
            total_timeout=settings.clocks.total,
        )
        forward = forward_of(settings, engines, self.metrics, trusted_proxies, stalls)
        shedding = Part(gate=lambda app: SheddingMiddleware(app, pressure=self.pressure))
        app = build(frame, (shedding, *engines.parts), forward)
        loop = asyncio.get_running_loop()
        self._running = running = Running(loop, app, stalls, engines)
        running.supervisor = loop.create_task(self._supervise(running), name="llmproxy")
        return running

    def _admin(
        self, engines: Engines, admin_key: AdminKey, caller: Caller, drains: Drains
    ) -> AdminApi:
        audit = AuditLog(engines.store)
        register = KeyRegister(
            engines.issued,
            audit,
            fields=FIELDS,
            configured=lambda: engines.configured.entries,
            objections=partial(why_not_issued, self.settings),
            lasting=self.settings.store.shared,
            notice=why_not_asked(self.settings),
        )
        everywhere = self.settings.workers == 1 or self.settings.store.shared
        return AdminApi(
            admin_key=admin_key,
            register=register,
            servers=ServerRegister(engines.registry, drains, audit, everywhere=everywhere),
            audit=audit,
            limiter=engines.limiter,
            caller=caller,
        )

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
        memory = running.loop.create_task(cgroup.watch(self.pressure))
        try:
            await running.engines.start()
            # Not by the time of the loop: that stands still while the loop does.
            appointments = Appointments(clock.now())
            while True:
                await asyncio.sleep(appointments.until_next(clock.now()))
                now = clock.now()
                kept = appointments.kept(now)
                for late in kept:
                    self.metrics.lag(late)
                if kept:  # a timer may ring a moment too early
                    self.pressure.lag(kept[0], now)
        finally:
            memory.cancel()
            running.stalls.close()
            await running.engines.aclose()
            # Closed sockets are let go in the next turn of the loop; a loop that ends before
            # would warn of them.
            await asyncio.sleep(0)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._running is not None:
                    await self._running.engines.first_look()
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
    stalls: Stalls
    engines: Engines
    supervisor: asyncio.Task[None] | None = None


def to_be_closed(app: Closable) -> None:
    """Have `lifespan` close this one, too."""
    _open.add(app)


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
        for app in list(_open):
            await app.aclose()


def forward_of(
    settings: Settings,
    engines: Engines,
    metrics: Metrics,
    trusted_proxies: TrustedProxies,
    stalls: Stalls,
) -> Forward:
    """Return the end of a chain that asks the servers of its engines."""
    return Forward(
        rotation=Rotation(engines.registry),
        clocks=settings.clocks,
        stalls=stalls,
        metrics=metrics,
        trusted_proxies=trusted_proxies,
        mark=mark_of(settings),
    )


def caller_of(engines: Engines) -> Caller:
    """Return who can tell whose key a request to our own pages carries."""
    authenticator = engines.authenticator
    if authenticator is None:
        return nobody

    async def caller(scope: Scope) -> Principal | None:
        try:
            return await authenticator.authenticate(call_of(scope, get_context(scope)))
        except StoreUnavailable:
            raise
        except ProxyError:
            return None

    return caller


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
