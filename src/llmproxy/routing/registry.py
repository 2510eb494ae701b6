"""The servers that there are now: they come and go while requests are on their way.

Rule 1: each source (the configuration, a watched file, a name in DNS) says what there is by its
        account, and only that changes.
Rule 2: a server that has gone, or has become another one, gets no new request, and its transport
        is closed once the last of the old ones is answered: no stream is cut for it.
Rule 3: what is said again is the same server: what is known of it is kept.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llmproxy.records import Upstream
from llmproxy.routing.changes import Changes
from llmproxy.routing.server import Server

MOST_SERVERS = 1000  # of one source: a name that resolves to more is a mistake or an attack
LOOK_EVERY = 0.25  # seconds between two looks at the servers that are leaving
QUIET = 12.0  # seconds without a request; longer than a retry waits for the server it has chosen
LONGEST_LEAVE = 3600.0  # seconds; after that it is taken for a request that nobody will end

log = logging.getLogger("llmproxy")


@dataclass(slots=True)
class _Leaving:
    """A server on its way out."""

    since: float
    busy_at: float  # when it was last seen with a request
    closed: bool = False


class Registry:
    """All servers of one event loop. Changes at once; nobody is waited for."""

    def __init__(self, make: Callable[[Upstream], Server]) -> None:
        self._make = make
        self.servers: tuple[Server, ...] = ()
        """Those in use now: a new tuple with each change."""

        self.on_change: list[Callable[[], None]] = []
        """Called after each change of `servers`."""

        self.on_gone: list[Callable[[Server], None]] = []
        """Called once the last request of a server that has left is over."""

        self._sources: dict[str, dict[Upstream, Server]] = {}  # by what was said of each
        self._drained: frozenset[str] = frozenset()
        self._leaving: dict[Server, _Leaving] = {}
        self._seeing_off: asyncio.Task[None] | None = None

    def replace(self, source: str, upstreams: Iterable[Upstream]) -> None:
        """Have these, and only these, be what a source says there is."""
        said = list(dict.fromkeys(upstreams))
        if len(said) > MOST_SERVERS:
            log.warning("%s names %d servers: the first %d count", source, len(said), MOST_SERVERS)
            del said[MOST_SERVERS:]
        before = self._sources.get(source, {})
        if said == list(before):
            return
        # Those who stay keep their names, whoever comes beside them. Who has left holds none.
        stay = {upstream: before[upstream] for upstream in said if upstream in before}
        others = [each for name, each in self._sources.items() if name != source]
        taken = {server.name for each in (stay, *others) for server in each.values()}
        # Made before anything is changed: one that cannot be made leaves all as it was.
        come = {upstream: self._come(upstream, taken) for upstream in said if upstream not in stay}
        self._sources[source] = {upstream: (stay | come)[upstream] for upstream in said}
        for upstream, server in before.items():
            if upstream not in stay:
                self._leave(server)
        for server in come.values():
            self._leaving.pop(server, None)
        self._changed()

    def find(self, name: str) -> Server | None:
        """Return the server of this name, if it is in use."""
        return next((server for server in self.servers if server.name == name), None)

    @property
    def drained(self) -> frozenset[str]:
        """The names that get no new requests, whether or not there are such servers now."""
        return self._drained

    def drain(self, name: str, on: bool) -> bool:
        """Have a server get no new requests, or get them again; False when there is none.

        It is the name that is drained: whatever else changes about the server, that stays.
        """
        if self.find(name) is None:
            return False
        self.drain_only(self._drained | {name} if on else self._drained - {name})
        return True

    def drain_only(self, names: Iterable[str]) -> None:
        """Have the servers of these names, and no others, get no new requests."""
        self._drained = frozenset(names)
        for server in self.servers:
            server.draining = server.name in self._drained

    @property
    def leaving(self) -> int:
        """How many servers are on their way out."""
        return len(self._leaving)

    async def aclose(self) -> None:
        """Close every connection, whoever uses it."""
        if self._seeing_off is not None:
            self._seeing_off.cancel()
        everybody = (*self.servers, *self._leaving)
        self.servers = ()
        Changes.made += 1
        self._sources.clear()
        self._leaving.clear()
        for server in everybody:
            server.stopped = True
            await server.transport.aclose()

    def _come(self, upstream: Upstream, taken: set[str]) -> Server:
        name, number = upstream.name, 2
        while name in taken:
            name, number = f"{upstream.name}-{number}", number + 1
        taken.add(name)
        named = upstream if name == upstream.name else replace(upstream, name=name)
        for server, leaving in self._leaving.items():
            if server.upstream == named and not leaving.closed:
                break  # it has thought better of it
        else:
            server = self._make(named)
        server.draining = name in self._drained
        return server

    def _leave(self, server: Server) -> None:
        now = asyncio.get_running_loop().time()
        self._leaving[server] = _Leaving(since=now, busy_at=now)
        if self._seeing_off is None:
            self._seeing_off = asyncio.create_task(self._see_off())

    def _changed(self) -> None:
        self.servers = tuple(server for each in self._sources.values() for server in each.values())
        Changes.made += 1
        for tell in self.on_change:
            tell()

    async def _see_off(self) -> None:
        """Close the servers that have left as they become idle."""
        loop = asyncio.get_running_loop()
        while self._leaving:
            await asyncio.sleep(LOOK_EVERY)
            now = loop.time()
            for server, leaving in list(self._leaving.items()):
                if self._leaving.get(server) is not leaving:
                    continue  # it came back while another was closed
                if server.busy:
                    leaving.busy_at = now
                if now - leaving.busy_at >= QUIET:
                    del self._leaving[server]
                    await self._close(server)
                    for tell in self.on_gone:
                        tell(server)
                elif now - leaving.since >= LONGEST_LEAVE and not leaving.closed:
                    leaving.closed = True
                    log.warning("%s has left, and a request to it does not end", server.name)
                    await self._close(server)
        self._seeing_off = None

    async def _close(self, server: Server) -> None:
        try:
            await server.transport.aclose()
        except Exception:  # one that cannot be closed must not keep the others open
            log.exception("the connections to %s could not be closed", server.name)
