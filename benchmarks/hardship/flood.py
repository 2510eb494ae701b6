"""An engine whose streams never end, in the process of whoever counts their bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"flood","object":"model"}]}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b'content-length: 46\r\n\r\n{"model":"flood","stream":true,"messages":[]} '
)
SEND_BUFFER = 64 * 1024  # bytes, doubled by the kernel: what it holds here is not the proxy's doing


class Stream(asyncio.Protocol):
    """One connection; a chat that is asked for on it is answered for ever."""

    def __init__(self, flood: "Flood") -> None:
        self.sent = 0  # bytes that the kernel has taken
        self.begun = False
        self._flood = flood
        self._held = b""
        self._written = 0
        self._paused = False
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # what the kernel does not take, is not made
        self._flood.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()
        self._flood.closed(self)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if b"\r\n\r\n" not in self._held or self.begun:
            return
        if self._held.startswith(b"POST"):
            self.begun = True
            self._write(HEAD)
            self._go_on()
        else:
            self._held = b""
            self.transport.write(PLAIN % (len(MODELS), MODELS))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._next is None:
            self._go_on()

    @property
    def taken(self) -> int:
        """Bytes that the kernel has taken of the stream."""
        return self._written - self.transport.get_write_buffer_size()

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        self.transport.write(data)

    def _go_on(self) -> None:
        self._next = None
        if self.transport.is_closing():
            return
        self._write(self._flood.chunk)
        if not self._paused:
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(self._flood.pause, self._go_on)


class Flood:
    """All of its streams."""

    def __init__(self, *, size: int, pause: float) -> None:
        event = b"data: " + b"x" * (size - 8) + b"\n\n"
        self.chunk = b"%x\r\n%b\r\n" % (len(event), event)
        self.pause = pause
        self.port = 0
        self.streams: set[Stream] = set()
        self._fewer = asyncio.Event()

    def opened(self, stream: Stream) -> None:
        self.streams.add(stream)

    def closed(self, stream: Stream) -> None:
        self.streams.discard(stream)
        self._fewer.set()

    @property
    def running(self) -> int:
        """Streams that are being answered."""
        return sum(stream.begun for stream in self.streams)

    async def deserted(self) -> None:
        """Return once the last stream has lost its reader."""
        while self.running:
            self._fewer.clear()
            await self._fewer.wait()


@asynccontextmanager
async def flooding(*, size: int = 16_384, pause: float = 0.0) -> AsyncIterator[Flood]:
    """Run an engine that sends `size` bytes every `pause` seconds, or what is taken."""
    flood = Flood(size=size, pause=pause)
    server = await asyncio.get_running_loop().create_server(
        lambda: Stream(flood), "127.0.0.1", 0, backlog=4096
    )
    flood.port = server.sockets[0].getsockname()[1]
    try:
        yield flood
    finally:
        server.close()
        for stream in list(flood.streams):
            stream.transport.abort()
