"""The public layers, each usable on its own in front of any ASGI app that speaks the OpenAI API.

    app.add_middleware(llmproxy.middleware.RateLimit, limits="60 req/min")

They take the settings that concern them as keyword arguments, by the names and in the grammars of
the environment, or a whole `Settings`. Each brings the part of the frame that it needs along and
shares it with those further out.
"""

import asyncio
from contextlib import suppress
from typing import Any, ClassVar

from llmproxy.application import to_be_closed
from llmproxy.assembly import Engines, assemble, part_named
from llmproxy.metrics import Metrics
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.settings import Settings
from llmproxy.stack import Frame, alone
from llmproxy.store.opening import prepare
from llmproxy.types import ASGIApp, Receive, Scope, Send


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
            max_body=settings.max_body,
            max_upload=settings.max_upload,
            body_timeout=settings.clocks.body,
        )
        on = self.name in settings.chain  # or there is nobody to ask and nothing to hold to
        self._framed = alone(part_named(self.name, engines), self._app, frame) if on else self._app
        self._loop = asyncio.get_running_loop()
        self._supervisor = self._loop.create_task(_supervise(engines), name=f"llmproxy {self.name}")

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


class RateLimit(SingleLayer):
    """Holds callers to limits and budgets: `RateLimit(app, limits="60 req/min")`."""

    name = "rate_limit"


async def _supervise(engines: Engines) -> None:
    """Live as long as the loop or until `aclose`; whichever ends it, everything is closed."""
    try:
        await engines.start()
        await asyncio.get_running_loop().create_future()
    finally:
        await engines.aclose()
