"""Keeps what the engines say of their load up to date, while there is a choice between them.

Rule 1: it must not cost what it saves. A page is asked for once a second while this process has
        requests on their way, every ten seconds when it has none, and so seldom that an engine
        is not kept busy with it for more than a twentieth of its time.
Rule 2: an engine that a look disturbs is asked only while it works for us: llama.cpp counts one
        as a use and never goes to sleep, TensorRT-LLM hands each figure out once and makes who
        comes early wait. A plain URL may be either, until its page says what it is.
Rule 3: a server without such a page is asked ever more seldom, and that is no fault of its.
Rule 4: what is not said anew is forgotten after a few seconds; the count of our own requests is
        what is left then.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from llmproxy import clock
from llmproxy.errors import ProxyError
from llmproxy.routing.engine_load import read_header, read_page
from llmproxy.routing.page import fetch
from llmproxy.routing.server import Server
from llmproxy.types import Header

PERIOD = 1.0  # seconds between two looks at work
IDLE_PERIOD = 10.0  # seconds between two looks otherwise
LONGEST_PERIOD = 3.0  # seconds at work, however long an engine takes: it is to stay fresh
COST = 20.0  # times as long as a page takes, an engine is left alone after it
JITTER = 0.15  # of a period, to either side
TICK = 0.25  # seconds between two looks at who is due
WITHIN = 1.0  # seconds for one page
LARGEST_PAGE = 1024 * 1024  # bytes; vLLM's has 100 KB
AT_ONCE = 16  # pages that are read at the same time

# How the time between two looks grows while they bring nothing, and how far.
_NO_PAGE = (4.0, 600.0)
_NO_ANSWER = (2.0, 10.0)
_TELL_AFTER = 3  # looks that brought nothing

_UNDISTURBED = frozenset({"vllm", "sglang", "tgi", "triton"})
_ACCEPT = b"text/plain, application/json;q=0.5"

ASK_FOR_LOAD: Header = (b"endpoint-load-metrics-format", b"json")
LOAD = b"endpoint-load-metrics"
HEADER_AFTER = 2.0  # seconds without a page, until a header has to do
HEADER_EVERY = 0.5  # seconds in which a second one is not read

log = logging.getLogger("llmproxy")


class Registry(Protocol):
    """Who knows which servers there are."""

    @property
    def servers(self) -> tuple[Server, ...]:
        """Those in use now."""


@dataclass(slots=True)
class _Look:
    """The looks at one server."""

    rest: float = 0.0  # seconds it is at least left alone
    spread: float = 1.0  # what the time until the next is stretched by
    asked_at: float = float("-inf")
    asking: asyncio.Task[None] | None = None
    misses: int = 0  # in a row
    engine: str = ""
    told: bool = False


class LoadWatch:
    """Reads pages of metrics for as long as it runs."""

    def __init__(
        self,
        registry: Registry,
        *,
        now: Callable[[], float] = clock.now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._now = now
        self._draw = draw
        self._looks: dict[Server, _Look] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                servers = self._registry.servers
                self._forget_others_than(servers)
                if len(servers) > 1:
                    at_work = any(server.inflight for server in servers)
                    for server in servers:
                        self._look(group, server, at_work)
                await asyncio.sleep(TICK)

    def _look(self, group: asyncio.TaskGroup, server: Server, at_work: bool) -> None:
        look = self._looks.get(server)
        if look is None:
            look = self._looks[server] = _Look(engine=server.upstream.preset)
        if not server.up:
            look.misses, look.rest = 0, 0.0  # it may be another one when it comes back
            return
        if not server.upstream.metrics or server.draining or look.asking is not None:
            return
        if look.engine not in _UNDISTURBED and not server.inflight:
            return
        pace = max(PERIOD if at_work else IDLE_PERIOD, look.rest) * look.spread
        if self._now() - look.asked_at >= pace:
            look.asking = group.create_task(self._ask(server, look))

    async def _ask(self, server: Server, look: _Look) -> None:
        """Look at one server, and note when to look again."""
        async with self._places:
            began = look.asked_at = self._now()
            look.spread = 1.0 + JITTER * (2.0 * self._draw() - 1.0)
            ours = server.inflight
            upstream = server.upstream
            growth, most = _NO_ANSWER
            load, why = None, "no answer"
            try:
                async with asyncio.timeout(WITHIN):
                    page = await fetch(
                        server.transport,
                        upstream,
                        upstream.root + upstream.metrics,
                        within=WITHIN,
                        at_most=LARGEST_PAGE,
                        accept=_ACCEPT,
                    )
                if page.good:
                    load, why = read_page(page.body, self._now()), "no figures in it"
                else:
                    why = f"status {page.status}"
                if page.status < 500 or page.status == 501:
                    growth, most = _NO_PAGE
            except (TimeoutError, ProxyError):
                pass  # whether it is well is for the probes to find out
            finally:
                look.asking = None
        if load is None:
            look.misses += 1
            look.rest = min(PERIOD * growth ** (look.misses - 1), most)
            self._tell(server, look, why)
            return
        look.misses = 0
        look.engine = load.engine
        look.rest = min(COST * (self._now() - began), LONGEST_PERIOD)
        # The larger of the two: what has just ended here is not taken for somebody else's.
        ours = max(ours, server.inflight)
        server.load = replace(load, others=max(0, load.running + load.waiting - ours))

    def _tell(self, server: Server, look: _Look, why: str) -> None:
        """Say once that a server does not do what its kind can."""
        if look.misses < _TELL_AFTER or look.told or server.upstream.preset == "http":
            return
        look.told = True
        log.info("%s does not tell its load at %s: %s", server.name, server.upstream.metrics, why)

    def _forget_others_than(self, servers: tuple[Server, ...]) -> None:
        if len(self._looks) > len(servers) or not self._looks.keys() <= set(servers):
            here = set(servers)
            self._looks = {server: look for server, look in self._looks.items() if server in here}


def wants_header(server: Server, now: float) -> bool:
    """Tell whether the next answer of a server that can say its load should do so.

    vLLM gathers all of its metrics for it: it is for when its page is out of our reach.
    """
    return server.load is None or now - server.load.seen_at > HEADER_AFTER


def heard(server: Server, value: bytes, now: float) -> None:
    """Note the header of an answer, unless there was one just now."""
    if server.load is None or now - server.load.seen_at > HEADER_EVERY:
        server.load = read_header(value, now, server.load) or server.load
