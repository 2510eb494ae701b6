"""Runs the app under uvicorn until it is told to stop."""

import asyncio
import gc
import logging
import resource
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from llmproxy.application import LLMProxy
from llmproxy.logs import BatchLog, console_line, json_line
from llmproxy.server.banner import banner
from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.logging_setup import set_up_logging
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.settings import Settings

STDOUT = 1
BACKLOG = 2048
FOR_EVER = float("inf")
OWN_DESCRIPTORS = 64  # listening sockets, log, event loop, libraries
PLENTY = 1_000_000  # descriptors; where there is no limit, some other one comes first

log = logging.getLogger("llmproxy")


class Server(uvicorn.Server):
    """uvicorn's server, which says when it drains and ends at once when told twice."""

    def __init__(self, config: uvicorn.Config, app: LLMProxy, bounds: Bounds) -> None:
        super().__init__(config)
        self.app = app
        self.bounds = bounds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        connections = Connections(self.bounds.connections)
        # uvicorn calls this with its own arguments, for each connection.
        self.config.http_protocol_class = partial(  # type: ignore[assignment]
            GuardedProtocol, bounds=self.bounds, connections=connections, loop=loop
        )
        gc.freeze()  # what start-up has made stays: the collector need not look at it again
        await super().startup(sockets)
        if self.started:
            print(banner(self.app.settings, self._address()), file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn takes only a second SIGINT for an order to end at once. It also raises each
        # signal again at its end, which would kill us after a clean stop; so none is noted.
        if self.should_exit:
            self.force_exit = True
        else:
            log.warning(
                "draining: running answers may finish within %g s; a second signal ends them",
                self.app.settings.drain_timeout,
            )
        self.should_exit = True
        self.app.draining = True

    def _address(self) -> str:
        settings = self.app.settings
        if settings.host.startswith("unix:"):
            return settings.host
        bound: tuple[str, int] = self.servers[0].sockets[0].getsockname()
        scheme = "https" if settings.tls_cert else "http"
        host = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"{scheme}://{host}:{bound[1]}"


def run(settings: Settings, *, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal; return the exit code."""
    set_up_logging(settings.log_level, settings.log_format)
    for warning in warnings:
        log.warning(warning)
    form = json_line if settings.log_format == "json" else console_line
    app = LLMProxy(settings, access_log=BatchLog(STDOUT, form))
    server = Server(config_for(settings, app), app, bounds_of(settings))
    with suppress(KeyboardInterrupt):  # acted on already; uvicorn raises it again at its end
        server.run()
    return 0 if server.started else 3


def bounds_of(settings: Settings) -> Bounds:
    """Return what a client may do."""
    return Bounds(
        head_timeout=settings.timeout_head or FOR_EVER,
        body_timeout=settings.timeout_body or FOR_EVER,
        write_timeout=settings.timeout_write or FOR_EVER,
        idle_timeout=settings.timeout_keepalive,
        connections=settings.max_connections or most_connections(),
    )


def most_connections() -> int:
    """Return how many clients the descriptor limit has room for, after raising it.

    Each of them may need a second descriptor, towards an upstream.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(1, (min(soft, PLENTY) - OWN_DESCRIPTORS) // 2)


def config_for(settings: Settings, app: LLMProxy) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    unix = settings.host.startswith("unix:")
    return uvicorn.Config(
        app,
        host=settings.host if not unix else "127.0.0.1",
        port=settings.port,
        uds=settings.host.removeprefix("unix:") if unix else None,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Whom to believe about the caller's address is LLMPROXY_TRUSTED_PROXIES' to say.
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.timeout_keepalive),
        timeout_graceful_shutdown=cast("int", settings.drain_timeout),  # a fraction works too
    )
