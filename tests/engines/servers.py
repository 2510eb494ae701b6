"""Starts model servers and the proxy as processes of their own, and stops them again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from tests.engines.engine import ROOT, Engine

START_LIMIT = 20.0  # seconds; an engine with a tiny model needs one
STOP_LIMIT = 10.0  # seconds
POLL = 0.02  # seconds


@dataclass(frozen=True)
class Server:
    """A server that is up, and the file that it writes its log to."""

    url: str
    log: Path
    pid: int = 0


@contextmanager
def engine_server(
    engine: Engine, folder: Path, *, command: Sequence[str] | None = None, port: int | None = None
) -> Iterator[Server]:
    """Run an engine; with `command`, in another way than it is usually started."""
    port = port or free_port()
    command = command or engine.command(folder, port)
    # Unbuffered: what it prints is to be in the log when a test looks there.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    server = Server(f"http://127.0.0.1:{port}", folder / f"{engine.name}.log")
    with _running(command, server, ready="/v1/models", environment=environment) as pid:
        yield replace(server, pid=pid)


@contextmanager
def proxy_server(*upstreams: Server, folder: Path, layers: str = "") -> Iterator[Server]:
    """Run llmproxy in front of servers, as the command line starts it: the frame, and `layers`."""
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LLMPROXY_")
    } | {
        "LLMPROXY_UPSTREAMS": ",".join(each.url for each in upstreams),
        "LLMPROXY_PORT": str(port),
        "LLMPROXY_MIDDLEWARE": layers,
        "PYTHONPATH": str(ROOT / "src"),
    }
    server = Server(f"http://127.0.0.1:{port}", folder / "llmproxy.log")
    command = [sys.executable, "-m", "llmproxy", "serve"]
    with _running(command, server, ready="/health/ready", environment=environment):
        yield server


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _running(
    command: Sequence[str], server: Server, *, ready: str, environment: Mapping[str, str]
) -> Iterator[int]:
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=server.log.parent, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(process, server, ready)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, path: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    with httpx.Client(trust_env=False, timeout=START_LIMIT) as client:
        while not _answers(client, server.url + path):
            ended = process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = "is not ready" if ended is None else f"ended with status {ended}"
                log = server.log.read_text(errors="replace")
                raise RuntimeError(f"{server.log.stem} {what}; its log is\n\n{log}")
            time.sleep(POLL)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.TransportError:
        return False
