"""One end of a connection, with control of every byte, pause and manner of leaving.

The scripted upstream and the raw client are both made of it. Nothing here waits longer than
`PATIENCE`: a test in which something never happens says what, instead of hanging.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

PATIENCE = 20.0  # seconds; far more than anything here takes, on however busy a machine
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # l_onoff, l_linger


class PeerLeft(Exception):
    """The other end closed the connection while more was expected of it."""


@asynccontextmanager
async def patience(what: str, seconds: float = PATIENCE) -> AsyncIterator[None]:
    """Fail with a sentence when the block does not finish."""
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            yield
    except TimeoutError:
        if clock.expired():
            raise AssertionError(f"{what}: not within {seconds:g} s") from None
        raise


class Wire(asyncio.Protocol):
    """A socket that does what it is told, and remembers what came."""

    def __init__(self) -> None:
        self.unread = bytearray()
        self.reads: list[bytes] = []  # what each read brought, unread or not
        self.read_bytes = 0
        self.sent_bytes = 0
        self.keep_reads = True
        self.waits = PATIENCE  # seconds for the peer to say or do something
        self.ended = False  # the peer will send nothing more
        self.lost = False  # the socket is gone
        self.lost_by: Exception | None = None
        self._made = asyncio.Event()
        self._news = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._transport: asyncio.Transport | None = None

    # Saying

    def send(self, data: bytes) -> None:
        """Write now: the bytes are with the kernel when this returns, if they fit."""
        if self.transport.is_closing():
            return  # as a program that writes into a socket whose peer has left
        self.sent_bytes += len(data)
        self.transport.write(data)

    async def sent(self) -> None:
        """Wait until everything that was written is with the kernel."""
        async with patience("the peer took what was sent"):
            await self._drained.wait()

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size()

    # Hearing

    async def some(self) -> bytes:
        """Return what is there, waiting for something; b"" once the peer has ended."""
        while not self.unread and not self.ended:
            await self._something()
        taken = bytes(self.unread)
        self.unread.clear()
        return taken

    async def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        while len(self.unread) < size:
            self._more_expected()
            await self._something()
        taken = bytes(self.unread[:size])
        del self.unread[:size]
        return taken

    async def until(self, end: bytes) -> bytes:
        """Return everything up to and including `end`."""
        while (found := self.unread.find(end)) < 0:
            self._more_expected()
            await self._something()
        return await self.exactly(found + len(end))

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        parts: list[bytes] = []
        while part := await self.some():
            parts.append(part)
        return b"".join(parts)

    async def anything(self) -> None:
        """Wait until a byte is there; raise when the peer leaves instead."""
        while not self.unread:
            self._more_expected()
            await self._something()

    async def closed(self) -> None:
        """Wait until the peer has closed, in whatever way."""
        async with patience("the peer closed the connection"):
            while not self.ended:
                await self._something()

    async def gone(self) -> None:
        """Wait until the socket is no more."""
        while not self.lost:
            await self._something()

    @property
    def was_reset(self) -> bool:
        """Whether the peer tore the connection down instead of closing it."""
        return isinstance(self.lost_by, ConnectionResetError)

    # Leaving and pausing

    def close(self) -> None:
        """Close after what was written has gone out: FIN."""
        self.transport.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on listening."""
        self.transport.write_eof()

    def reset(self) -> None:
        """Tear the connection down: RST, whatever was written and not yet sent is lost."""
        if self.transport.is_closing():
            return  # it is over already
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()

    def stop_reading(self) -> None:
        """Leave what comes from now on in the kernel."""
        self.transport.pause_reading()

    def go_on_reading(self) -> None:
        """Take up reading again."""
        self.transport.resume_reading()

    # Looking at the socket

    @property
    def transport(self) -> asyncio.Transport:
        """The event loop's side of the connection."""
        assert self._transport is not None, "the connection is not made yet"
        return self._transport

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for its options."""
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    @property
    def unread_in_kernel(self) -> int:
        """Bytes that wait in our own receive buffer."""
        answer = fcntl.ioctl(self.socket.fileno(), termios.FIONREAD, struct.pack("i", 0))
        size: int = struct.unpack("i", answer)[0]
        return size

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses, so this cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        self._made.set()

    def data_received(self, data: bytes) -> None:
        self.unread += data
        self.read_bytes += len(data)
        if self.keep_reads:
            self.reads.append(data)
        self._news.set()

    def eof_received(self) -> bool:
        self.ended = True
        self._news.set()
        return self.transport.get_extra_info("sslcontext") is None  # TLS knows no half-close

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.lost = True
        self.lost_by = exc
        self._news.set()
        self._drained.set()

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    async def _something(self) -> None:
        self._news.clear()
        async with patience("the peer said or did something", self.waits):
            await self._news.wait()

    def _more_expected(self) -> None:
        if self.ended:
            raise PeerLeft(f"the peer left; unread: {bytes(self.unread[:200])!r}")
