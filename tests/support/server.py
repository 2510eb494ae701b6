"""ASGI apps under the servers that people run them with."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import uvicorn

from llmproxy.types import ASGIApp
from tests.support.ports import free_port
from tests.support.process import Process, answering, running
from tests.support.wire import PATIENCE, patience

HostName = Literal["uvicorn", "granian", "hypercorn"]


@dataclass(frozen=True, slots=True)
class Served:
    """An app that can be reached."""

    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()


@asynccontextmanager
async def under_uvicorn(app: ASGIApp, **options: Any) -> AsyncIterator[Served]:
    """Serve `app` with uvicorn, uvloop and httptools, on a loop and a thread of its own.

    At the end connections are closed at once: what must survive a stop is tested elsewhere.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    settings: dict[str, Any] = {
        "loop": "uvloop",
        "http": "httptools",
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 1,
        **options,
    }
    server = _Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, args=([sock],), name="uvicorn")
    thread.start()
    try:
        assert await asyncio.to_thread(server.ready.wait, PATIENCE), "uvicorn did not start"
        assert server.started, "the app refused to start"
        yield Served(sock.getsockname()[1])
    finally:
        server.should_exit = True
        async with patience("uvicorn stopped"):
            await asyncio.to_thread(thread.join)
        sock.close()


@dataclass(frozen=True, slots=True)
class Hosted(Served):
    """An app in a process of its own."""

    process: Process | None = None


@asynccontextmanager
async def hosted(
    server: HostName,
    app: str,
    environment: Mapping[str, str] | None = None,
    *,
    ready: str = "/health/live",
) -> AsyncIterator[Hosted]:
    """Run `app` ("module:name") under a server in a process of its own; wait for `ready`."""
    port = free_port()
    command = [sys.executable, "-m", *_arguments(server, port), app]
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    async with running(command, added) as process:
        await answering(process, port, ready)
        yield Hosted(port, process=process)


def _arguments(server: HostName, port: int) -> list[str]:
    match server:
        case "uvicorn":
            return ["uvicorn", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        case "granian":
            where = ["--host", "127.0.0.1", "--port", str(port)]
            return ["granian", "--interface", "asgi", "--loop", "uvloop", *where]
        case "hypercorn":
            return ["hypercorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "uvloop"]
