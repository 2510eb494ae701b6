"""A client on a raw socket: says exactly what it is told, hears exactly what arrives."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from llmproxy.types import Header
from tests.support.wire import PATIENCE, PeerLeft, Wire, patience


@dataclass(slots=True)
class Answer:
    """The head of an answer, and its body as far as it was read."""

    status: int
    version: bytes
    headers: list[Header]
    raw: bytes  # the head as it came
    body: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """Return the one value of a header; a header given twice fails the test."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name!r} was sent {len(found)} times"
        return found[0] if found else None


class RawClient(Wire):
    """A connection to a proxy under test."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []  # on this connection, informational ones left out
        self.informational: list[Answer] = []
        self.frames: list[bytes] = []  # the chunks of the last body, as they were cut
        self.complete = False  # the last body was read to its end, and it was the end

    async def head(self) -> Answer:
        """Return the next final head."""
        while True:
            raw = await self.until(b"\r\n\r\n")
            first, *lines = raw[:-4].split(b"\r\n")
            version, status, *_ = first.split(b" ", 2)
            headers: list[Header] = []
            for line in lines:
                name, colon, value = line.partition(b":")
                assert colon and name == name.strip(), f"not a header: {line!r}"
                headers.append((name.lower(), value.strip()))
            answer = Answer(int(status), version, headers, raw)
            if answer.status >= 200 or answer.status == 101:
                self.answers.append(answer)
                self.frames = []
                self.complete = False
                return answer
            self.informational.append(answer)

    async def answer(self, *, to: bytes = b"POST") -> Answer:
        """Return the next answer with its body, delimited in whatever way; `to` is the method.

        A body that is cut off ends here too, with `complete` False.
        """
        answer = await self.head()
        try:
            if to == b"HEAD" or answer.status in (204, 304):
                pass
            elif answer.header(b"transfer-encoding") == b"chunked":
                async for frame in self.chunks():
                    answer.body += frame
            elif (length := answer.header(b"content-length")) is not None:
                answer.body = await self.exactly(int(length))
            else:
                answer.body = await self.rest()
        except PeerLeft:
            answer.body += await self.rest()
            return answer
        self.complete = True
        return answer

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield each chunk of the body as it was written; sets `complete` at the last one.

        Raises `PeerLeft` when the connection ends before the terminating chunk.
        """
        while True:
            size = int(await self.until(b"\r\n"), 16)
            if size == 0:
                while await self.until(b"\r\n") != b"\r\n":
                    pass  # a trailer
                self.complete = True
                return
            frame = await self.exactly(size)
            assert await self.exactly(2) == b"\r\n", "a chunk does not end where it should"
            self.frames.append(frame)
            yield frame

    async def sip(self, size: int, pause: float) -> bytes:
        """Take at least `size` bytes out of the kernel, then stop and wait: a slow reader."""
        self.go_on_reading()
        async with patience(f"{size} bytes came"):
            while len(self.unread) < size and not self.ended:
                await self._something()
        self.stop_reading()
        await asyncio.sleep(pause)
        taken = bytes(self.unread)
        self.unread.clear()
        return taken


@asynccontextmanager
async def raw_client(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    path: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RawClient]:
    """Connect; whatever is still open at the end is torn down."""
    loop = asyncio.get_running_loop()
    async with patience("the server took a connection", PATIENCE):
        if path is not None:
            _, client = await loop.create_unix_connection(RawClient, str(path))
        else:
            _, client = await loop.create_connection(RawClient, host, port, ssl=tls)
    try:
        yield client
    finally:
        if not client.lost:
            client.transport.abort()


def request_bytes(
    target: bytes = b"/v1/chat/completions",
    *,
    method: bytes = b"POST",
    headers: list[Header] | None = None,
    body: bytes | None = b"{}",
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """Write an ordinary request; the raw cases write theirs by hand."""
    lines = [b"%b %b %b" % (method, target, version)]
    named = {name.lower() for name, _ in headers or ()}
    if b"host" not in named:
        lines.append(b"host: proxy.test")
    lines += [b"%b: %b" % header for header in headers or ()]
    if body is not None:
        if b"content-type" not in named:
            lines.append(b"content-type: application/json")
        if b"transfer-encoding" not in named:
            lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])
