"""What decides in one event loop: how it begins, looks around and ends."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field

from llmproxy.auth.authenticator import Authenticator
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.issued import IssuedKeys
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.routing.discovery.watch import Discovery
from llmproxy.routing.health import Health
from llmproxy.routing.registry import Registry
from llmproxy.stack import Part
from llmproxy.store.interface import Store

FIRST_LOOK = 3.0  # seconds that is waited for servers that have to be found

log = logging.getLogger("llmproxy")

Watch = Callable[[], Coroutine[None, None, None]]


@dataclass(slots=True)
class Engines:
    """What decides in one event loop, and the parts of the chain that ask it."""

    registry: Registry
    discovery: Discovery
    health: Health
    store: Store
    local: Store  # stands in for the store while that is away; the same in memory
    issued: IssuedKeys
    configured: ConfiguredKeys
    authenticator: Authenticator | None
    limiter: Limiter
    parts: tuple[Part, ...] = field(default=())
    watches: list[Watch] = field(default_factory=list)
    closing: list[Callable[[], None]] = field(default_factory=list)
    _watching: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Begin to watch what changes and to renew what must be renewed."""
        self._watching = [asyncio.create_task(watch()) for watch in self.watches]
        for task in self._watching:
            task.add_done_callback(_tell_of_an_end)
        await self.store.start()

    async def first_look(self) -> None:
        """Return once every source of servers was asked, or has been silent for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                await self.discovery.first_look()

    async def look_again(self) -> None:
        """Have a model looked for that nobody seems to have."""
        if not self.registry.servers:
            await self.first_look()
        await self.health.refresh()

    async def aclose(self) -> None:
        """Settle what is open, then let go of everything."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self.health.close()
        for close in self.closing:
            close()
        if self.authenticator is not None:
            await self.authenticator.aclose()
        await self.limiter.aclose()
        await self.store.aclose()
        await self.registry.aclose()


def _tell_of_an_end(watch: asyncio.Task[None]) -> None:
    """Say that something is no longer watched: it would only go stale, and nobody would know."""
    if not watch.cancelled() and (fault := watch.exception()) is not None:
        log.error("what watches the servers has failed", exc_info=fault)
