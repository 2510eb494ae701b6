"""A supervisor and its workers, seen from outside: who lives, who serves whom."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.process import POLL, Process
from tests.support.proxy import Proxy, serving
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PATIENCE, PeerLeft, patience

SERVE = [sys.executable, "-m", "llmproxy", "serve"]
READY = "listens on"
REPLACED = "the workers are replaced"
ASK = request_bytes(body=b'{"model":"m"}')
ASK_FOR_A_STREAM = CHAT.request


@dataclass
class Engine:
    """An upstream whose streams say one thing and then wait until they may finish."""

    name: str = "engine"
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.request()
        if b'"stream":true' in request.body:
            exchange.begin()
            exchange.chunk(CHAT.events[0])
            await self.go_on.wait()
            for event in (*CHAT.events[1:], *CHAT.terminal):
                exchange.chunk(event)
            exchange.end()
        else:
            exchange.json({"model": self.name})


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Look again and again until something holds."""
    async with patience(what, seconds):
        while not condition():  # noqa: ASYNC110 - another process knows no event of ours
            await asyncio.sleep(POLL)


def workers_of(supervisor: int) -> dict[str, int]:
    """Return the process id of each worker by its name."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                if "--name" in words:
                    found[words[words.index("--name") + 1]] = int(child)
    return found


def board_of(worker: int) -> Path:
    """Return the directory that a worker lays its counters into."""
    return Path(_told(worker, "--board"))


def index_of(worker: int) -> int:
    """Return which of the workers one is."""
    return int(_told(worker, "--index"))


def _told(worker: int, option: str) -> str:
    words = Path(f"/proc/{worker}/cmdline").read_bytes().decode().split("\0")
    return words[words.index(option) + 1]


def lives(pid: int) -> bool:
    """Tell whether a process is there; one that has ended and was not fetched is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def asleep(*pids: int) -> Iterator[None]:
    """Stop processes, so that whatever comes meanwhile is for the others."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def client_of(proxy: Proxy, worker: str) -> AsyncIterator[RawClient]:
    """Connect to one of the workers and to no other."""
    others = [pid for name, pid in workers_of(proxy.process.pid).items() if name != worker]
    async with AsyncExitStack() as stack:
        with asleep(*others):
            client = await stack.enter_async_context(raw_client(port=proxy.port))
            status, _ = await get(client, b"/health/live")
        assert status == 200
        yield client


async def get(client: RawClient, path: bytes) -> tuple[int, str]:
    """Ask for a page; return status and body."""
    client.send(request_bytes(path, method=b"GET", body=None))
    answer = await client.answer(to=b"GET")
    return answer.status, answer.body.decode()


async def stream(client: RawClient) -> None:
    """Ask for a stream and wait for its first event."""
    client.send(ASK_FOR_A_STREAM)
    assert (await client.head()).status == 200
    async for chunk in client.chunks():
        assert chunk == CHAT.events[0]
        return


async def remainder(client: RawClient, *, stay: bool = False) -> bytes:
    """Return the rest of a stream, as far as it comes, and leave."""
    found = b""
    with suppress(PeerLeft):
        async for chunk in client.chunks():
            found += chunk
    if not stay:
        client.close()
    return found


def refused(port: int) -> bool:
    """Tell whether nobody listens any more."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def port_of(process: Process) -> int:
    """Return the port that the banner names."""
    found = re.search(r"listens on https?://\S+:(\d+)\n", process.stderr)
    assert found is not None, process.stderr
    return int(found[1])


@asynccontextmanager
async def two_workers(engine: Engine, **settings: str) -> AsyncIterator[Proxy]:
    """Run a proxy that is up with both of its workers."""
    environment = {"LLMPROXY_WORKERS": "2", **settings}
    async with scripted(engine.script) as server:
        environment["LLMPROXY_UPSTREAMS"] = server.url
        async with serving(environment) as proxy:
            await proxy.process.says(READY)
            yield proxy


async def replaced(process: Process, times: int = 1) -> None:
    """Wait until as many replacements are over."""
    await until(lambda: process.stderr.count(REPLACED) >= times, f"{times} replacements", 30.0)


def able_to_import(directory: Path) -> dict[str, str]:
    """Return the environment in which modules of a directory can be imported, too."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{directory}{os.pathsep}{others}" if others else str(directory)}
