"""The processes of a hardship: the proxy, what stands behind it, and whoever asks beside it."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hardship.kernel import resident
from benchmarks.hardship.prober import Probed
from benchmarks.load.environments import ROOT
from benchmarks.load.process_tree import ProcessTree
from benchmarks.load.subjects import Place, inherited_environ, layered, llmproxy

START_LIMIT = 30.0
STOP_LIMIT = 20.0
POLL = 0.02
SETTLE = 1.0  # seconds for what a start or an end leaves to do
WARM_UP = 200  # requests, so that what the first ones allocate for good is not counted

ALIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
# What a process says of itself when something went wrong in it.
_TROUBLE = re.compile(rb"Traceback|worker-\d+ ended|Too many open files|MemoryError")
_LAG = re.compile(rb'llmproxy_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)')


class Collapse(Exception):
    """A process of ours did something that makes the figures worthless."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A `llmproxy serve` that answers."""

    port: int
    tree: ProcessTree
    log: Path

    def memory(self) -> int:
        return resident(self.tree)

    def troubles(self) -> int:
        """How often its log tells of a crash."""
        return len(_TROUBLE.findall(self.log.read_bytes()))

    async def lag(self) -> "Lag":
        """Ask for the metric of its event loop."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(METRICS)
        page = await reader.read()
        writer.close()
        return Lag.parse(page)


@dataclass(frozen=True, slots=True)
class Lag:
    """The buckets of `llmproxy_event_loop_lag_seconds`, cumulative as Prometheus has them."""

    buckets: Mapping[float, float]

    @classmethod
    def parse(cls, page: bytes) -> "Lag":
        found = {float(le): float(count) for le, count in _LAG.findall(page)}
        if not found:
            raise Collapse(f"/metrics has no loop lag: {page[:200]!r}")
        return cls(found)

    def most_since(self, earlier: "Lag") -> float:
        """The bound of the slowest bucket that was hit meanwhile; infinite beyond the last."""
        before = 0.0
        most = 0.0
        for bound in sorted(self.buckets):
            seen = self.buckets[bound] - earlier.buckets[bound]
            if seen > before:
                most = bound
            before = seen
        return most

    def since(self, earlier: "Lag") -> "Lag":
        """What came meanwhile."""
        return Lag({each: self.buckets[each] - earlier.buckets[each] for each in self.buckets})

    @property
    def count(self) -> float:
        return max(self.buckets.values())

    def quantile(self, share: float) -> float:
        """The bound of the bucket below which so many are; infinite beyond the last."""
        if not self.count:
            raise Collapse("the loop had no appointment meanwhile")
        return min(each for each, seen in self.buckets.items() if seen >= share * self.count)


@asynccontextmanager
async def proxied(upstream: int | str, **settings: object) -> AsyncIterator[Proxy]:
    """Run a bare proxy in front of a port or a URL, warmed up; the log of requests goes nowhere."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llmproxy-hardship-") as folder:
        environ = {f"LLMPROXY_{name.upper()}": str(value) for name, value in settings.items()}
        if isinstance(upstream, str):
            environ["LLMPROXY_UPSTREAMS"] = upstream
        subject = llmproxy("llmproxy", {**layered(()), **environ})
        assert subject.launch is not None
        place = Place(port, 0, upstream if isinstance(upstream, int) else 0, Path(folder))
        launch = subject.launch(place)
        log = Path(folder) / "stderr"
        async with running(launch.argv, launch.environ, log) as process:
            await _answering(process, port, log)
            for _ in range(WARM_UP):
                await _ask(port)
            await asyncio.sleep(SETTLE)
            yield Proxy(port, ProcessTree(process.pid), log)


@asynccontextmanager
async def listening(module: str, *arguments: str) -> AsyncIterator[int]:
    """Run a server of ours that prints the port it listens on."""
    async with running([sys.executable, "-m", module, *arguments]) as process:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT)
        yield int(line)


async def told_by(module: str, *arguments: str) -> object:
    """Run a client of ours to its end and return the JSON that it prints."""
    async with running([sys.executable, "-m", module, *arguments]) as process:
        assert process.stdout is not None
        said = await process.stdout.read()
        if await process.wait():
            raise Collapse(f"{module} failed")
        return json.loads(said)


@asynccontextmanager
async def running(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, log: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process; with `log` it is silent and complains into that file."""
    with contextlib.ExitStack() as stack:
        complaints = stack.enter_context(log.open("wb")) if log is not None else None
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=ROOT,
            env={**inherited_environ(), **(environ or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if log is None else asyncio.subprocess.DEVNULL,
            stderr=complaints,
        )
        try:
            yield process
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    for sign, limit in (
        (signal.SIGTERM, 1.0),
        (signal.SIGTERM, STOP_LIMIT),  # a supervisor is told twice to wait for no answer
        (signal.SIGKILL, STOP_LIMIT),
    ):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sign)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), limit)


async def _answering(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_LIMIT):
            while process.returncode is None:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await _ask(port)
                    return
                await asyncio.sleep(POLL)
    raise Collapse(f"the proxy does not start: {_last_words(log)}")


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-500:]


async def _ask(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ALIVE)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def probed(
    port: int, request: bytes, *, rate: float, seconds: float, keep: bool = False
) -> Probed:
    """Let a client ask at a fixed rate, from a process of its own."""
    arguments = ["--port", str(port), "--rate", str(rate), "--seconds", str(seconds)]
    arguments += ["--request", request.hex(), *(["--keep"] if keep else [])]
    return Probed.of(await told_by("benchmarks.hardship.prober", *arguments))
