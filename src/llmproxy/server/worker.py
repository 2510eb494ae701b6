"""One worker: serves on a socket that the supervisor has bound, until it is told to stop.

    python -m llmproxy.server.worker --listen FD --lifeline FD --board DIR --name NAME

The lifeline is a socket to the supervisor. A byte on it says that we serve; its end says that
the supervisor is gone, and then we drain as if we had been asked to.
"""

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import uvicorn

from llmproxy.application import LLMProxy
from llmproxy.logs import BatchLog, console_line, json_line
from llmproxy.metrics_board import Board
from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.logging_setup import set_up_logging
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.settings import Settings, SettingsError, load

STDOUT = 1
BAD_CONFIGURATION = 2
PUBLISH_EVERY = 1.0  # seconds
FOR_EVER = float("inf")
OWN_DESCRIPTORS = 64  # listening sockets, log, event loop, libraries
PLENTY = 1_000_000  # descriptors; where there is no limit, some other one comes first

log = logging.getLogger("llmproxy")


class Server(uvicorn.Server):
    """uvicorn's server with our connections, our way to stop, and a line to the supervisor."""

    def __init__(
        self, config: uvicorn.Config, app: LLMProxy, bounds: Bounds, lifeline: socket.socket
    ) -> None:
        super().__init__(config)
        self.app = app
        self.bounds = bounds
        self.lifeline = lifeline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        connections = Connections(self.bounds.connections)

        # uvicorn calls this with its own arguments, for each connection.
        def protocol(**given: object) -> GuardedProtocol:
            made = GuardedProtocol(
                **given,  # type: ignore[arg-type]  # config, server_state, app_state, _loop
                bounds=self.bounds,
                connections=connections,
                loop=loop,
            )
            made.closing_soon = self.should_exit
            return made

        self.config.http_protocol_class = protocol  # type: ignore[assignment]
        gc.freeze()  # what start-up has made stays: the collector need not look at it again
        await super().startup(sockets)
        if self.started:
            loop.add_reader(self.lifeline, self._supervisor_gone)
            self.lifeline.send(b"+")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn takes only a second SIGINT for an order to end at once. It also raises each
        # signal again at its end, which would kill us after a clean stop; so none is noted.
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.app.draining = True

    def _supervisor_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self.lifeline)
        log.warning("the supervisor is gone: draining")
        self.handle_exit(signal.SIGTERM, None)


async def publish(board: Board, app: LLMProxy) -> None:
    """Lay our counters open for whichever worker is scraped."""
    while True:
        await asyncio.to_thread(board.publish, app.metrics)
        await asyncio.sleep(PUBLISH_EVERY)


async def serve(server: Server, listening: socket.socket, board: Board) -> None:
    """Serve until told to stop."""
    publishing = asyncio.create_task(publish(board, server.app))
    try:
        await server.serve(sockets=[listening])
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
        board.publish(server.app.metrics)


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
    return uvicorn.Config(
        app,
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
        timeout_graceful_shutdown=settings.drain_timeout,  # type: ignore[arg-type]  # not only whole
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker; return the exit code."""
    parser = argparse.ArgumentParser(prog="llmproxy.server.worker")
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--board", required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args(argv)
    # The supervisor waits for its signals with them blocked, and we have inherited that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        settings = load(Settings, os.environ).settings
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return BAD_CONFIGURATION
    set_up_logging(settings.log_level, settings.log_format)
    form = json_line if settings.log_format == "json" else console_line
    app = LLMProxy(settings, access_log=BatchLog(STDOUT, form))
    board = Board(arguments.board, arguments.name)
    app.metrics.others = board.others
    lifeline = socket.socket(fileno=arguments.lifeline)
    lifeline.setblocking(False)
    listening = socket.socket(fileno=arguments.listen)
    config = config_for(settings, app)
    server = Server(config, app, bounds_of(settings), lifeline)
    with (
        suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=config.get_loop_factory()) as loop,
    ):
        loop.run(serve(server, listening, board))
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
