"""Keep the registry told of what there is.

Rule 1: a source that cannot say it keeps the servers it has; one that says there is none has none.
Rule 2: no source holds up or ends another.
Rule 3: the log has a line for each change and each new failure, not for each look. Where a server
        stands is told at debug level alone.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llmproxy.records import Upstream
from llmproxy.routing.discovery.addresses import AddressSource
from llmproxy.routing.discovery.source import LookFailed, Read, Source
from llmproxy.routing.registry import Registry

MOST_SERVERS = 256  # of one source
JITTER = 0.2  # of a pause, to either side: workers that started together do not ask together
AFTER_FAILURE = 5.0  # seconds at least
MOST_NAMED = 8  # servers in one line of the log

Forbidden = Callable[[str], bool]

log = logging.getLogger("llmproxy")


@dataclass(slots=True)
class _Watched:
    """One source, and what was said of it last."""

    template: Upstream
    source: Source
    servers: dict[str, Upstream] = field(default_factory=dict)
    failure: str = ""
    left_out: str = ""
    looked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def account(self) -> str:
        """What its servers go under in the registry."""
        return f"{self.template.found_by}:{self.template.name}"


class Discovery:
    """Looks wherever the templates say, for as long as it runs.

    `forbidden` tells which hosts are never called, whoever names them.
    """

    def __init__(
        self,
        registry: Registry,
        templates: Iterable[Upstream],
        *,
        read: Read,
        forbidden: Forbidden,
    ) -> None:
        self._registry = registry
        self._forbidden = forbidden
        self._watched = [_Watched(each, source_of(each, read)) for each in templates]

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        try:
            async with asyncio.TaskGroup() as watching:
                for watched in self._watched:
                    watching.create_task(self._watch(watched))
        finally:
            for watched in self._watched:
                await watched.source.aclose()

    async def first_look(self) -> None:
        """Return when every source was asked once, whether or not it could say anything."""
        for watched in self._watched:
            await watched.looked.wait()

    async def _watch(self, watched: _Watched) -> None:
        while True:
            try:
                servers, left_out = acceptable(await watched.source.look(), self._forbidden)
                self._registry.replace(watched.account, servers)
            except Exception as exc:  # whatever it is, what was found before goes on
                _tell_failure(watched, exc)
            else:
                _tell_change(watched, servers, left_out)
            watched.looked.set()
            pause = watched.source.pause
            if watched.failure:
                pause = max(pause, AFTER_FAILURE)
            await asyncio.sleep(pause * random.uniform(1 - JITTER, 1 + JITTER))


async def servers_now(
    template: Upstream, *, read: Read, forbidden: Forbidden
) -> Sequence[Upstream]:
    """Return what a template stands for at this moment; raise `LookFailed`."""
    source = source_of(template, read)
    try:
        return acceptable(await source.look(), forbidden)[0]
    finally:
        await source.aclose()


def source_of(template: Upstream, read: Read) -> Source:
    """Return what is to be asked."""
    # Imported when they are wanted: one brings an HTTP client along, one needs an extra.
    match template.found_by:
        case "dns":
            return AddressSource(template)
        case "srv":
            from llmproxy.routing.discovery.service_names import ServiceSource

            return ServiceSource(template)
        case "consul":
            from llmproxy.routing.discovery.consul import ConsulSource

            return ConsulSource(template)
        case "file":
            from llmproxy.routing.discovery.server_file import FileSource

            return FileSource(template, read=read)
    raise ValueError(f"nothing is found by {template.found_by!r}")


def acceptable(found: Sequence[Upstream], forbidden: Forbidden) -> tuple[list[Upstream], str]:
    """Return the servers that may be used; beside them stands why there are not more."""
    servers = [each for each in found if not forbidden(each.host)]
    reasons = []
    if len(servers) < len(found):
        reasons.append(f"{len(found) - len(servers)} link-local or metadata addresses")
    if len(servers) > MOST_SERVERS:
        reasons.append(f"{len(servers) - MOST_SERVERS} servers over {MOST_SERVERS}")
        del servers[MOST_SERVERS:]
    return servers, " and ".join(reasons)


def _tell_failure(watched: _Watched, error: Exception) -> None:
    failure = str(error) if isinstance(error, LookFailed) else type(error).__name__
    if failure != watched.failure:
        watched.failure = failure
        log.error("%s keeps the servers it has: %s", watched.template.name, failure)


def _tell_change(watched: _Watched, servers: Sequence[Upstream], left_out: str) -> None:
    name = watched.template.name
    if watched.failure:
        watched.failure = ""
        log.info("%s can be asked again", name)
    if left_out != watched.left_out:
        watched.left_out = left_out
        if left_out:
            log.warning("%s leaves out %s", name, left_out)
    before, now = watched.servers, {each.name: each for each in servers}
    if now == before and watched.looked.is_set():
        return
    watched.servers = now
    log.info("%s has %d servers%s", name, len(now), _difference(before, now))
    for each in servers:
        if before.get(each.name) != each:
            log.debug("%s is at %s", each.name, each.path or f"{each.host} port {each.port}")


def _difference(before: dict[str, Upstream], now: dict[str, Upstream]) -> str:
    told = ""
    for word, some in (
        ("new", [name for name in now if name not in before]),
        ("changed", [name for name in now if name in before and now[name] != before[name]]),
        ("gone", [name for name in before if name not in now]),
    ):
        if some:
            more = f" and {len(some) - MOST_NAMED} more" if len(some) > MOST_NAMED else ""
            told += f"; {word}: {', '.join(some[:MOST_NAMED])}{more}"
    return told
