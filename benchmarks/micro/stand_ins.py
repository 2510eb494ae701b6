"""What stands in for sockets, servers and engines. Each counts what has reached it."""

import asyncio
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from benchmarks.micro.messages import CHUNK, LAST_CHUNK
from llmproxy.logs import Line, json_line
from llmproxy.transport import Call, Outgoing
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.interface import Taker
from llmproxy.types import Header, Message, Receive, Scope, Send


class Wire(asyncio.Transport):
    """A socket that takes everything at once."""

    def __init__(self) -> None:
        self.writes = 0
        self.size = 0
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        self.size += len(data)
        self.last = data  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """Nobody reads."""

    def resume_reading(self) -> None:
        """Nobody reads."""

    def abort(self) -> None:
        """Can be used on: a benchmark has one for all its calls."""

    def close(self) -> None:
        """As above."""


class EngineWire(Wire):
    """The way to an engine which answers each request with the same reads, one per turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.connection: Connection | None = None
        self.first = b""
        self.chunk = b""
        self.chunks = 0  # reads between the first and the last
        self.end = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        self._left = self.chunks
        self._loop.call_soon(self._give, self.first)

    def _give(self, data: bytes) -> None:
        assert self.connection is not None
        # The next turn is asked for first, as the kernel would: the reader runs in between.
        if self._left > 0:
            self._left -= 1
            self._loop.call_soon(self._give, self.chunk)
        elif data is not self.end and self.end:
            self._loop.call_soon(self._give, self.end)
        self.connection.feed(data)


class Owner:
    """A pool that keeps nothing."""

    def __init__(self) -> None:
        self.returns = 0

    def returned(self, connection: Connection) -> None:
        self.returns += 1

    def lost(self, connection: Connection) -> None:
        """Nothing is lost here."""


class ReadyCall:
    """An answer that is there as soon as it is asked for."""

    status = 200
    reused = True

    def __init__(self, headers: list[Header], chunk: bytes, count: int, last: bytes) -> None:
        self.headers = headers
        self.over = False
        self._chunk = chunk
        self._left = count  # chunks before the last
        self._last = last

    async def read(self, within: float) -> bytes:
        if self._left > 0:
            self._left -= 1
            return self._chunk
        self.over = True
        return self._last

    def at_once(self) -> bytes | None:
        return None

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""


class ReadyTransport:
    """A way to an engine that answers before it was asked."""

    def __init__(self, headers: list[Header], *, last: bytes, chunk: bytes = b"") -> None:
        self.headers = headers
        self.chunk = chunk
        self.chunks = 0  # before the last
        self.last = last
        self.asked = 0

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Call:
        self.asked += 1
        return ReadyCall(self.headers, self.chunk, self.chunks, self.last)

    async def aclose(self) -> None:
        """Nothing is open."""

    def statistics(self) -> dict[str, int]:
        return {"open": 0, "idle": 0, "waiting": 0}


class Sink:
    """A client that takes everything."""

    def __init__(self) -> None:
        self.heads = 0
        self.bodies = 0
        self.ends = 0
        self.chunks = 0  # that are the very object that was sent

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.bodies += 1
            if message["body"] is CHUNK:
                self.chunks += 1
            if not message["more_body"]:
                self.ends += 1
        else:
            self.heads += 1


class Answering:
    """The trivial app: reads nothing, answers the same."""

    def __init__(self, headers: Sequence[Header], last: bytes, chunks: int = 0) -> None:
        self.chunks = chunks
        self._start = {"type": "http.response.start", "status": 200, "headers": list(headers)}
        self._chunk = {"type": "http.response.body", "body": CHUNK, "more_body": True}
        self._end = {"type": "http.response.body", "body": last, "more_body": False}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(self._start)
        for _ in repeat(None, self.chunks):
            await send(self._chunk)
        await send(self._end)


class Watch:
    """What our own server offers to a request: the disconnect without a task."""

    gone = False

    def __init__(self) -> None:
        self.task: Any = asyncio.current_task()
        self.wanted = 0

    def notes(self, headers: list[Header]) -> None:
        return None

    def take_body(self) -> None:
        return None

    def cancel_when_gone(self, wanted: bool) -> None:
        self.wanted += wanted


class LineCount:
    """An access log that formats its lines and throws them away."""

    enabled = True

    def __init__(self) -> None:
        self.lines = 0

    def write(self, line: Line) -> None:
        if json_line(line):
            self.lines += 1

    def close(self) -> None:
        """Nothing is kept back."""


def ready_stream(chunks: int, headers: list[Header]) -> ReadyCall:
    """Return a stream with so many chunks before its last."""
    return ReadyCall(headers, CHUNK, chunks, LAST_CHUNK)
