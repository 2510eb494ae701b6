"""A program of its own: started, listened to, and gone at the end of the block."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from tests.support.client import raw_client, request_bytes
from tests.support.wire import PeerLeft, patience

START = 30.0  # seconds that a server may take to answer its first request
STOP = 25.0  # seconds that it may take to leave after SIGTERM
POLL = 0.02  # seconds


class Process:
    """A running program and everything that it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._news = asyncio.Event()
        assert process.stdout is not None and process.stderr is not None
        self._listeners = [
            asyncio.create_task(self._listen("stdout", process.stdout)),
            asyncio.create_task(self._listen("stderr", process.stderr)),
        ]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """What it left with; None while it runs, negative for a signal."""
        return self._process.returncode

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._said["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._said["stderr"].decode(errors="replace")

    async def says(self, text: str, seconds: float = START) -> None:
        """Wait until the text stands in its output."""
        async with patience(f"{text!r} appeared in {self.stdout!r} or {self.stderr!r}", seconds):
            while text not in self.stdout and text not in self.stderr:
                self._news.clear()
                await self._news.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is still somebody to receive it."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def finished(self, seconds: float = STOP) -> int:
        """Wait for the end and return the exit code."""
        async with patience(f"process {self.pid} ended; it said {self.stderr!r}", seconds):
            code = await self._process.wait()
            await asyncio.gather(*self._listeners)
        return code

    async def end(self, seconds: float = STOP) -> int:
        """Ask it to leave and wait; one that does not is killed, and the test fails."""
        try:
            if self.returncode is None:
                self.signal(signal.SIGTERM)
            return await self.finished(seconds)
        finally:
            if self.returncode is None:
                self.signal(signal.SIGKILL)
                await self._process.wait()

    async def _listen(self, name: str, stream: asyncio.StreamReader) -> None:
        while part := await stream.read(65536):
            self._said[name] += part
            self._news.set()
        self._news.set()


@asynccontextmanager
async def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a program; `environment` is added to ours, from which every setting was taken out."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("LLMPROXY_")}
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            env={**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    try:
        yield process
    finally:
        await process.end()


async def answering(process: Process, port: int, path: str = "/", seconds: float = START) -> None:
    """Wait until a GET brings an answer below 500; say what the program said if it ends instead."""
    async with patience(f"{path} was answered; the server said {process.stderr!r}", seconds):
        while not await _answers(port, path.encode()):
            assert process.returncode is None, f"it left at once: {process.stderr}"
            await asyncio.sleep(POLL)


async def _answers(port: int, path: bytes) -> bool:
    try:
        async with raw_client(port=port) as client:
            client.send(request_bytes(path, method=b"GET", body=None))
            return (await client.answer(to=b"GET")).status < 500
    except (OSError, PeerLeft):
        return False
