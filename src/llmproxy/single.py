"""The public layers, each usable on its own in front of any ASGI app that speaks the OpenAI API.

    app.add_middleware(llmproxy.middleware.RateLimit, limits="60 req/min")

They take the settings that concern them as keyword arguments, by the names and in the grammars of
the environment, or a whole `Settings`. Each brings the part of the frame that it needs along and
shares it with those further out.
"""

import asyncio
from contextlib import suppress
from typing import Any, ClassVar

from llmproxy.application import forward_of, to_be_closed
from llmproxy.assembly import assemble
from llmproxy.engines import Engines
from llmproxy.metrics import Metrics
from llmproxy.parts import part_named
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Upstream
from llmproxy.settings import Settings, SettingsError
from llmproxy.settings.faults import Fault
from llmproxy.stack import Frame, alone
from llmproxy.stalls import Stalls
from llmproxy.store.opening import prepare
from llmproxy.types import ASGIApp, Receive, Scope, Send

A_CENTURY = 3e9  # seconds


class SingleLayer:
    """One layer in a foreign app. Starts itself with its first request, on each event loop."""

    name: ClassVar[str]

    def __init__(self, app: ASGIApp, /, *, settings: Settings | None = None, **values: Any) -> None:
        self.settings = settings if settings is not None else Settings(**values)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._framed: ASGIApp = app
        self._supervisor: asyncio.Task[None] | None = None
        to_be_closed(self)
        prepare(self.settings.store.url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._loop is not asyncio.get_running_loop():
            self._start()
        await self._framed(scope, receive, send)

    def _start(self) -> None:
        settings = self.settings
        trusted_proxies = TrustedProxies(settings.trusted_proxies)
        metrics = Metrics()
        engines = assemble(settings, metrics, trusted_proxies, place=0)
        frame = Frame(
            metrics=metrics,
            trusted_proxies=trusted_proxies,
            paths=Paths(settings.upstreams),
            max_body=settings.max_body,
            max_upload=settings.max_upload,
            body_timeout=settings.clocks.body,
            total_timeout=settings.clocks.total,
        )
        on = self.name in settings.chain  # or there is nobody to ask and nothing to hold to
        self._framed = self._app
        if on:
            part = part_named(self.name, engines, settings, metrics)
            end = self._end(engines, metrics, trusted_proxies)
            self._framed = alone(part, self._app, frame, end=end)
        self._loop = asyncio.get_running_loop()
        self._supervisor = self._loop.create_task(_supervise(engines), name=f"llmproxy {self.name}")

    def _end(
        self, engines: Engines, metrics: Metrics, trusted_proxies: TrustedProxies
    ) -> ASGIApp | None:
        """Return who answers in the place of the app; None for the app itself."""
        return None

    async def aclose(self) -> None:
        """Close what belongs to the running event loop. The layer can be used again."""
        if self._loop is not asyncio.get_running_loop() or self._supervisor is None:
            return
        self._loop = None
        self._supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await self._supervisor


class Auth(SingleLayer):
    """Asks who is calling: `Auth(app, keys="ada:env:ADA_KEY")`."""

    name = "auth"

    def __init__(self, app: ASGIApp, /, *, settings: Settings | None = None, **values: Any) -> None:
        super().__init__(app, settings=settings, **values)
        if self.settings.auth == "off" and "auth" not in self.settings.model_fields_set:
            # Nothing is read from the environment here, which whoever wrote it may have expected.
            cure = "Auth has nobody to ask for a key: give it keys=..., or say so with auth='off'"
            raise SettingsError([Fault("auth", "", cure)])


class RateLimit(SingleLayer):
    """Holds callers to limits and budgets: `RateLimit(app, limits="60 req/min")`."""

    name = "rate_limit"


class Routing(SingleLayer):
    """Sends requests to model servers: `Routing(app, upstreams="http://gpu1:8000")`.

    Without upstreams the app is the one server: its models may have aliases and fallbacks, and
    what it fails is tried again.
    """

    name = "routing"

    def __init__(self, app: ASGIApp, /, *, settings: Settings | None = None, **values: Any) -> None:
        super().__init__(app, settings=settings, **values)
        if self.settings.upstreams:
            _refuse_to_hide(app)

    def _end(
        self, engines: Engines, metrics: Metrics, trusted_proxies: TrustedProxies
    ) -> ASGIApp | None:
        settings = self.settings
        if settings.upstreams:
            stalls = Stalls(settings.clocks.write)
            engines.closing.append(stalls.close)
            return forward_of(settings, engines, metrics, trusted_proxies, stalls)
        engines.watches.clear()  # it answers no probe that it does not know
        engines.registry.replace("app", [Upstream("app", "http", "", 0, lists_models=False)])
        return None


def _refuse_to_hide(app: ASGIApp | None) -> None:
    """Refuse to answer from upstreams in the place of layers that would hold callers back."""
    while app is not None:
        if isinstance(app, Auth | RateLimit):
            name = type(app).__name__
            cure = f"Routing would answer in the place of {name}: add {name} after it, not before"
            raise SettingsError([Fault("upstreams", "", cure)])
        app = getattr(app, "_app", None) or getattr(app, "app", None)


async def _supervise(engines: Engines) -> None:
    """Live as long as the loop or until `aclose`; whichever ends it, everything is closed."""
    try:
        await engines.start()
        # By the clock of the loop, which knows us then. A task that only an app knows is thrown
        # away with it, in the middle, when its host lets go of it.
        await asyncio.sleep(A_CENTURY)
    finally:
        await engines.aclose()
