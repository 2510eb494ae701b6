"""How the servers are: asked on a schedule, or when somebody wants to know.

Rule 1: cheap. Nothing is generated; the models are asked for once a minute, or when one was not
        found; no server is asked twice at the same time, and only so many at once.
Rule 2: a server counts as up until it was asked. One that refuses, or says that it is not well,
        is down at once; one that is silent gets a second chance: a busy engine is silent too.
Rule 3: what it said of its models is kept until it says something else.
"""

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass, replace

from llmproxy.metrics import Metrics
from llmproxy.records import Upstream
from llmproxy.routing.probe import Probe, probe
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server

FRESH = 2.0  # seconds that an answer is believed while nobody watches: checks come in flocks
WITHIN = 3.0  # seconds that a server has to say how it is
WELL_EVERY = 10.0  # seconds between two looks at a server that is well
ILL_EVERY = 2.0  # seconds between two looks at one that is not, or may not be
LIST_EVERY = 60.0  # seconds between two looks at its models
REFRESH_EVERY = 2.0  # seconds between two searches for a model that was not found
JITTER = 0.2  # of a period, to either side
TICK = 0.25  # seconds between two looks at who is due
AT_ONCE = 32  # servers that are asked at the same time

NEVER = float("-inf")

log = logging.getLogger("llmproxy")


@dataclass(slots=True)
class _View:
    """What is known of asking one server."""

    last: Probe | None = None
    at: float = NEVER  # when it was asked last
    listed_at: float = NEVER  # when it was asked for its models
    due: float = NEVER
    asking: asyncio.Task[Probe] | None = None
    listing: bool = False  # whether that asks for its models


class Health:
    """Asks, and keeps each `Server` told of how it is."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._views: dict[Server, _View] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._watching = False
        self._changed = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = NEVER
        registry.on_change.append(self._follow)
        registry.on_gone.append(self._forget)
        self._follow()

    @property
    def ready(self) -> bool:
        """Whether there is a server that would get a request now."""
        return any(
            server.up and not server.draining and not server.breaker.opens_in()
            for server in self._registry.servers
        )

    async def look(self) -> dict[str, Probe]:
        """Return what is known of each server: while nobody watches, at most `FRESH` old."""
        oldest = NEVER if self._watching else asyncio.get_running_loop().time() - FRESH
        views = dict(self._views)
        asking = [
            self._asking(server, view)
            for server, view in views.items()
            if view.last is None or view.at <= oldest
        ]
        if asking:
            # Shielded: one asker who leaves must not take the answer from the others.
            await asyncio.shield(asyncio.gather(*asking))
        return {server.name: view.last for server, view in views.items() if view.last is not None}

    async def refresh(self) -> None:
        """Ask all servers that are up for their models, because one was not found.

        However many want that, it is done once, and again only after a while: names that nobody
        has cost the servers nothing.
        """
        if self._refreshing is None:
            if asyncio.get_running_loop().time() < self._refreshed_at + REFRESH_EVERY:
                return
            self._refreshing = asyncio.create_task(self._list_all())
        await asyncio.shield(self._refreshing)

    async def watch(self) -> None:
        """Ask every server on its schedule until cancelled; new ones at once."""
        loop = asyncio.get_running_loop()
        self._watching = True
        try:
            while True:
                now = loop.time()
                for server, view in self._views.items():
                    if view.due <= now and view.asking is None:
                        self._asking(server, view, listing=_wants_list(server, view, now))
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._changed.wait()
        finally:
            self._watching = False

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the state of each pool."""
        return {server.name: server.transport.statistics() for server in self._views}

    def close(self) -> None:
        """Stop looking."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for view in self._views.values():
            if view.asking is not None:
                view.asking.cancel()

    def _asking(self, server: Server, view: _View, *, listing: bool = True) -> asyncio.Task[Probe]:
        """Return the probe of a server that is under way, or begin one."""
        if view.asking is None:
            view.listing = listing
            view.asking = asyncio.create_task(self._ask(server, view))
        return view.asking

    async def _ask(self, server: Server, view: _View) -> Probe:
        loop = asyncio.get_running_loop()
        try:
            async with self._places:
                found = await probe(
                    server.transport, _asked_as(server), within=WITHIN, listing=view.listing
                )
            now = loop.time()
            if view.listing:
                view.listed_at = now
            silent_before = view.last is not None and view.last.silent
            view.last, view.at = found, now
            period = WELL_EVERY if found.ok else ILL_EVERY
            view.due = now + period * random.uniform(1 - JITTER, 1 + JITTER)
            if self._views.get(server) is view:  # it has not left meanwhile
                doubtful = found.silent and server.up and self._watching and not silent_before
                self._tell(server, found, up=found.ok or doubtful)
            return found
        finally:
            view.asking = None

    def _tell(self, server: Server, found: Probe, *, up: bool) -> None:
        server.detail = found.detail
        if found.documents is not None:
            server.documents = found.documents
        if up and not server.up:
            log.info("%s is up again", server.name)
            server.came_back()
            server.breaker.close()
        elif server.up and not up:
            log.warning("%s is down: %s", server.name, found.detail)
        server.up = up
        self._metrics.probed(server.name, up)

    async def _list_all(self) -> None:
        try:
            await asyncio.gather(
                *(
                    self._list(server, view)
                    for server, view in self._views.items()
                    if server.up and server.upstream.lists_models and not server.upstream.models
                )
            )
        finally:
            self._refreshed_at = asyncio.get_running_loop().time()
            self._refreshing = None

    async def _list(self, server: Server, view: _View) -> None:
        while view.asking is not None and not view.listing:
            await asyncio.wait([view.asking])
        await asyncio.shield(self._asking(server, view))

    def _follow(self) -> None:
        """Hear that servers have come or gone."""
        here = self._registry.servers
        for server in self._views.keys() - set(here):
            self._views.pop(server)
            if self._registry.find(server.name) is None:
                self._metrics.left(server.name)
        for server in here:
            if server not in self._views:
                self._views[server] = _View()
                self._metrics.breaker(server.name, server.breaker.state)
        self._changed.set()

    def _forget(self, server: Server) -> None:
        """Hear that the last request of a server that has left is over."""
        if self._registry.find(server.name) is None:
            self._metrics.forget(server.name)


def _wants_list(server: Server, view: _View, now: float) -> bool:
    if view.last is None or not view.last.ok:
        return True  # what was wrong may be the list
    return now - view.listed_at >= LIST_EVERY


def _asked_as(server: Server) -> Upstream:
    """Return the upstream as it is to be asked: SGLang's /health may generate a token."""
    upstream = server.upstream
    documents = server.documents
    if (
        upstream.health
        and documents
        and all(each.get("owned_by") == "sglang" for each in documents.values())
    ):
        return replace(upstream, health="")
    return upstream
