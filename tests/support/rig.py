"""A proxy between a scripted upstream and a raw client, all three in the loop of the test.

uvicorn and httptools are the real ones, the sockets too. Only uvicorn's own start and stop are
left out: they wait a tenth of a second each, and a suite has hundreds of them. Client connections
are uvicorn's own or ours, as `serve_with` says.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from llmproxy.application import LLMProxy
from llmproxy.logs import Line
from llmproxy.rate_limit.pressure import Pressure
from llmproxy.records import Upstream
from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.server.sockets import set_options
from llmproxy.settings import Settings
from llmproxy.types import ASGIApp
from tests.support.client import Answer, RawClient, raw_client
from tests.support.wire import patience


class Connection(Enum):
    """How a proxy is served: whose client connections it has, and whether it routes."""

    UVICORN = "uvicorn"
    OURS = "ours"
    ROUTED = "routed"  # ours, and the layer that chooses a server stands before the end


# What most tests are about is the frame, and scripts that are asked nothing but what a test asks.
UNROUTED = "auth,rate_limit"

_connection = Connection.UVICORN


def serve_with(connection: Connection) -> None:
    """Choose how every proxy is served that is made from now on."""
    global _connection
    _connection = connection


class KeptLine(dict[str, Any]):
    """A line, in which what is not known may be asked for."""

    def __missing__(self, name: str) -> None:
        return None


@dataclass
class KeptLog:
    """Keeps the lines of the access log."""

    enabled: bool = True
    lines: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, line: Line) -> None:
        self.lines.append(KeptLine(line))
        self._news.set()

    def close(self) -> None:
        self.closed = True

    async def line(self, number: int = 1) -> dict[str, Any]:
        """Wait for a line, by its number."""
        async with patience(f"line {number} of the log was written"):
            while len(self.lines) < number:
                self._news.clear()
                await self._news.wait()
        return self.lines[number - 1]


class NoPressure(Pressure):
    """Turns nobody away: how busy this machine is, is not what a test of the proxy is about."""

    @property
    def shedding(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Rig:
    """A proxy that answers, and what it has written down."""

    port: int
    app: LLMProxy
    log: KeptLog

    def client(self) -> AbstractAsyncContextManager[RawClient]:
        """Connect to it."""
        return raw_client(port=self.port)

    async def ask(self, request: bytes) -> Answer:
        """Send one request on a connection of its own and return the answer."""
        return (await self.asked(request))[0]

    async def asked(self, request: bytes) -> tuple[Answer, bool]:
        """Do the same; the second value tells whether the answer had its proper end."""
        async with self.client() as client:
            client.send(request)
            answer = await client.answer(to=request.partition(b" ")[0])
            return answer, client.complete

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of one series; 0 when there is none yet."""
        return sample(self.app.metrics.render(), f"llmproxy_{name}", **labels)


def sample(exposition: bytes, name: str, **labels: str) -> float:
    """Return the value of one series in Prometheus' text format; 0 when it is not there."""
    for family in text_string_to_metric_families(exposition.decode()):
        for each in family.samples:
            if each.name == name and each.labels == labels:
                return float(each.value)
    return 0.0


@asynccontextmanager
async def proxied(*upstreams: Upstream | str, **settings: Any) -> AsyncIterator[Rig]:
    """Run a proxy in front of upstreams: records, or what configuration would say of them.

    At the end every request has to be over, with nothing left of it.
    """
    configured: object
    if all(isinstance(each, Upstream) for each in upstreams):
        configured = upstreams
    else:
        configured = ",".join(str(each) for each in upstreams)
    log = KeptLog()
    routed = _connection is Connection.ROUTED
    if not routed:
        settings.setdefault("middleware", UNROUTED)
    app = LLMProxy(Settings(upstreams=configured, **settings), access_log=log)
    app.pressure = NoPressure()
    clocks = app.settings.clocks
    bounds = Bounds(body_timeout=clocks.body, write_timeout=clocks.write)
    ours = _connection is not Connection.UVICORN
    if routed:
        app.start().engines.watches.clear()  # no server is asked how it is
    async with served_here(app, bounds=bounds if ours else None) as port:
        rig = Rig(port, app, log)
        yield rig
    assert rig.sample("inflight_requests") == 0, "a request is still counted"
    for upstream in app.settings.upstreams:
        left = rig.sample("upstream_inflight", upstream=upstream.name)
        assert left == 0, f"{upstream.name} is still counted as busy"


@asynccontextmanager
async def served_here(
    app: ASGIApp, *, bounds: Bounds | None = None, **options: Any
) -> AsyncIterator[int]:
    """Serve `app` with uvicorn in the running loop; yields the port.

    With `bounds` the client connections are ours.
    """
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    settings: dict[str, Any] = {
        "http": "httptools",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        **options,
    }
    config = uvicorn.Config(app, **settings)
    config.load()
    if bounds is not None:
        set_options(sock, bounds)
        config.http_protocol_class = partial(  # type: ignore[assignment]  # as `serve` does it
            GuardedProtocol,
            bounds=bounds,
            connections=Connections(bounds.connections),
            loop=asyncio.get_running_loop(),
        )
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[sock])
    await server.on_tick(0)  # makes the headers that every answer gets
    try:
        yield sock.getsockname()[1]
    finally:
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        async with patience("every request ended once its client had gone"):
            while tasks := list(server.server_state.tasks):
                await asyncio.wait(tasks)
        await server.lifespan.shutdown()
        sock.close()
