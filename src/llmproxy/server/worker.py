"""One worker: serves on a socket that the supervisor has bound, until it is told to stop.

    python -m llmproxy.server.worker --listen FD --lifeline FD --board DIR --name NAME --index N

The lifeline is a socket to the supervisor, see `worker_process`. SIGTERM drains, however often
it comes: whoever stops a service may send it to each of its processes, and so does the supervisor.
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
from typing import cast

import uvicorn

from llmproxy.application import LLMProxy
from llmproxy.logs import BatchLog, console_line, json_line
from llmproxy.metrics_board import Board
from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.logging_setup import set_up_logging
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.server.sockets import set_options
from llmproxy.server.worker_process import SERVES
from llmproxy.settings import Settings, SettingsError, load

STDOUT = 1
BAD_CONFIGURATION = 2
PUBLISH_EVERY = 1.0  # seconds
# A request leaves no circles behind, so the collector may come by less often than every 700
# objects: it was 3 % of what a request costs.
COLLECT = (20_000, 20, 20)
FAREWELL = 1.5  # seconds for the last words to clients that are cut off
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
        self.orphaned = False  # the supervisor is gone

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        connections = Connections(self.bounds.connections)
        self.app.pressure.relieve = connections.close_idle

        def protocol() -> GuardedProtocol:
            made = GuardedProtocol(
                self.config,
                self.server_state,
                self.lifespan.state,
                loop,
                bounds=self.bounds,
                connections=connections,
                loop=loop,
            )
            made.closing_soon = self.should_exit
            return made

        gc.freeze()  # what start-up has made stays: the collector need not look at it again
        gc.set_threshold(*COLLECT)
        await super().startup([])
        # Not by uvicorn: under TLS a client would have 60 s before it has said anything at all.
        tls, clock = self.config.ssl, self.bounds.head_timeout
        handshake = clock if tls is not None and clock != FOR_EVER else None
        for sock in sockets or ():
            set_options(sock, self.bounds)
            server = await loop.create_server(
                protocol,
                sock=sock,
                ssl=tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=handshake,
            )
            self.servers.append(server)
        if self.started:
            loop.add_reader(self.lifeline, self._told)
            with suppress(OSError):  # the supervisor is gone, and we shall be told at once
                self.lifeline.send(SERVES)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn takes a second signal for an order to end at once, and raises each of them
        # again at its end, which would kill us after a clean stop.
        self._drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own limit does not wait for what it cancels: the last words to the clients
        # and the lines in the log would be lost.
        limit = self.app.settings.drain_timeout
        cut = asyncio.get_running_loop().call_later(limit, self._end_leftovers)
        await super().shutdown(sockets)
        cut.cancel()

    def _drain(self) -> None:
        self.should_exit = True
        self.app.draining = True

    def _told(self) -> None:
        """Hear what the supervisor says: only that the answers must end, or nothing any more."""
        try:
            gone = not self.lifeline.recv(1)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            asyncio.get_running_loop().remove_reader(self.lifeline)
            log.warning("the supervisor is gone: draining")
            self.orphaned = True
        else:
            self._end_leftovers()
        self._drain()

    def _end_leftovers(self) -> None:
        tasks = self.server_state.tasks
        if tasks:
            log.warning("ending %d answers that are not finished", len(tasks))
        for task in tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(FAREWELL, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            cast("GuardedProtocol", connection).cut(reset=True)


async def publish(board: Board) -> None:
    """Lay our counters open for whichever worker is scraped."""
    while True:
        board.publish()
        await asyncio.sleep(PUBLISH_EVERY)


async def serve(server: Server, listening: socket.socket, board: Board) -> None:
    """Serve until told to stop."""
    publishing = asyncio.create_task(publish(board))
    try:
        await server.serve(sockets=[listening])
    finally:
        publishing.cancel()
        board.publish()
        if server.orphaned:
            board.leave()


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
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker; return the exit code."""
    parser = argparse.ArgumentParser(prog="llmproxy.server.worker")
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--board", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--index", type=int, required=True)  # which of the workers, from 0
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
    app = LLMProxy(settings, access_log=BatchLog(STDOUT, form), place=arguments.index)
    board = Board(arguments.board, arguments.name, app.metrics)
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
