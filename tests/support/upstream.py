"""A scripted model server on a real socket.

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel")
        await the_test_says_so.wait()
        exchange.reset()

    async with scripted(script) as server: ...

A script is called when a connection is accepted, and again after it returned, each time the
client says something more on the same connection. It may say anything at any moment; what it
raises fails the test. Nothing is sent that the script did not send.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from llmproxy.records import Upstream
from llmproxy.types import Header
from tests.support.wire import PATIENCE, PeerLeft, Wire, patience

Script = Callable[["Exchange"], Awaitable[None]]


@dataclass(slots=True)
class Request:
    """What the server was asked."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[Header]
    raw: bytes  # the head as it came
    received: bytearray = field(default_factory=bytearray)  # of the body, so far
    trailers: bytes = b""

    @property
    def body(self) -> bytes:
        """The body as far as it was read."""
        return bytes(self.received)

    def header(self, name: bytes) -> bytes | None:
        """Return the one value of a header; a header given twice fails the test."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name!r} was sent {len(found)} times"
        return found[0] if found else None


class Exchange(Wire):
    """One connection as its script sees it."""

    def __init__(self, server: "ScriptedServer") -> None:
        super().__init__()
        self.server = server
        self.connection = 0  # 1 for the first connection that the server accepted
        self.requests: list[Request] = []  # on this connection
        self.frames: list[bytes] = []  # the chunks of the last body, as they were cut
        self._left = 0  # bytes of a counted body that are still to come
        self._chunked = False
        self._task: asyncio.Task[None] | None = None

    @property
    def number(self) -> int:
        """Which request of this connection is being answered, from 1."""
        return len(self.requests)

    # The request, at once or piece by piece

    async def request(self) -> Request:
        """Return the next request with its whole body."""
        request = await self.head()
        await self.body()
        return request

    async def head(self) -> Request:
        """Return the head of the next request; its body is left to `pieces` or `body`."""
        raw = await self.until(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        method, target, version = first.split(b" ")
        headers: list[Header] = []
        for line in lines:
            name, colon, value = line.partition(b":")
            assert colon and name == name.strip(), f"not a header: {line!r}"
            headers.append((name.lower(), value.strip()))
        request = Request(method, target, version, headers, raw)
        self._frame(request)
        self.requests.append(request)
        self.server.requests.append(request)
        return request

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes in: a chunk as it was cut, a counted one as it was read."""
        request = self.requests[-1]
        while piece := await self._piece():
            request.received += piece
            yield piece

    async def body(self) -> bytes:
        """Return the body, or what is left of it."""
        async for _ in self.pieces():
            pass
        return self.requests[-1].body

    async def piece(self) -> bytes:
        """Return the next piece of the body; b"" after the last."""
        piece = await self._piece()
        self.requests[-1].received += piece
        return piece

    # The answer

    def json(self, value: object, status: bytes = b"200 OK") -> None:
        """Send a counted JSON answer."""
        body = orjson.dumps(value)
        self.send(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )

    def begin(self, status: bytes = b"200 OK", content_type: bytes = b"text/event-stream") -> None:
        """Send the head of a chunked answer."""
        self.send(
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
            % (status, content_type)
        )

    def chunk(self, data: bytes) -> None:
        """Send one chunk."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Send the last chunk."""
        self.send(b"0\r\n\r\n")

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connection = self.server.arrived(self)
        self._task = asyncio.get_running_loop().create_task(self._follow_the_script())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server.left(self)

    async def stop(self) -> None:
        """End the script and the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self.lost:
            self.transport.abort()

    async def _follow_the_script(self) -> None:
        try:
            while True:
                await self.server.script(self)
                if self.transport.is_closing():
                    return
                # The client may be silent for as long as it likes between two requests.
                while not self.unread:
                    if self.ended:
                        self.close()
                        return
                    self._news.clear()
                    await self._news.wait()
        except PeerLeft:
            self.transport.close()
        except Exception as exc:
            self.server.failures.append(exc)
            self.transport.abort()

    def _frame(self, request: Request) -> None:
        length = request.header(b"content-length")
        coding = request.header(b"transfer-encoding")
        assert length is None or coding is None, "the body is delimited twice"
        assert coding in (None, b"chunked"), coding
        self._left = int(length) if length is not None else 0
        self._chunked = coding is not None
        self.frames = []

    async def _piece(self) -> bytes:
        if self._chunked:
            size = int(await self.until(b"\r\n"), 16)
            if size == 0:
                self._chunked = False
                self.requests[-1].trailers = await self.until(b"\r\n")
                return b""
            piece = await self.exactly(size)
            assert await self.exactly(2) == b"\r\n", "a chunk does not end where it should"
            self.frames.append(piece)
            return piece
        if self._left == 0:
            return b""
        await self.anything()
        piece = await self.exactly(min(self._left, len(self.unread)))
        self._left -= len(piece)
        return piece


@dataclass
class ScriptedServer:
    """The server, what happened to it, and how to reach it."""

    script: Script
    upstream: Upstream = field(default_factory=lambda: Upstream("engine", "http", "", 0))
    accepted: int = 0
    requests: list[Request] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)  # in the order of their arrival
    listening: asyncio.AbstractServer | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def open(self) -> int:
        """Connections whose client has not left."""
        return sum(not exchange.ended for exchange in self.exchanges)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.upstream.host, self.upstream.port

    @property
    def url(self) -> str:
        """Its address as configuration has it."""
        if self.upstream.scheme == "unix":
            return f"unix://{self.upstream.path}"
        return f"{self.upstream.scheme}://{self.upstream.authority}"

    async def reached(self, connections: int = 1) -> Exchange:
        """Wait for a connection, by its number, and return it."""
        async with patience(f"connection {connections} was made"):
            while len(self.exchanges) < connections:
                self._changed.clear()
                await self._changed.wait()
        return self.exchanges[connections - 1]

    async def abandoned(self) -> None:
        """Wait until every client has left."""
        for exchange in list(self.exchanges):
            await exchange.closed()

    async def die(self) -> None:
        """Go as a process that is killed: nobody listens, and every connection is reset."""
        assert self.listening is not None
        self.listening.close()
        for exchange in self.exchanges:
            if not exchange.lost:
                exchange.reset()
        async with patience("every connection was reset"):
            for exchange in self.exchanges:
                await exchange.gone()

    async def come_back(self) -> None:
        """Listen again where it did."""
        host, port = self.address
        loop = asyncio.get_running_loop()
        self.listening = await loop.create_server(
            lambda: Exchange(self), host, port, reuse_address=True
        )

    def arrived(self, exchange: Exchange) -> int:
        """Take note of a new connection."""
        self.accepted += 1
        self.exchanges.append(exchange)
        self._changed.set()
        return self.accepted

    def left(self, exchange: Exchange) -> None:
        """Take note of a connection that is gone."""
        self._changed.set()


@asynccontextmanager
async def scripted(
    script: Script,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    path: Path | None = None,
    send_buffer: int | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server; its scripts end with the block, and what they raised is raised.

    `path` makes it a unix socket. `send_buffer` bounds what the kernel takes of an answer,
    `receive_buffer` what it takes of a request that nobody reads.
    """
    loop = asyncio.get_running_loop()
    server = ScriptedServer(script)
    if path is not None:
        listening = await loop.create_unix_server(lambda: Exchange(server), str(path), ssl=tls)
        server.upstream = Upstream("engine", "unix", "", 0, path=str(path))
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if send_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((host, port))
        listening = await loop.create_server(lambda: Exchange(server), sock=sock, ssl=tls)
        scheme = "https" if tls is not None else "http"
        server.upstream = Upstream("engine", scheme, host, sock.getsockname()[1])
    server.listening = listening
    try:
        yield server
    finally:
        listening = server.listening
        listening.close()
        for exchange in server.exchanges:
            await exchange.stop()
        async with patience("the server stopped", PATIENCE):
            await listening.wait_closed()
    for failure in server.failures:
        raise failure


# Ready-made scripts


def answering(answer: bytes) -> Script:
    """Answer every request with the same bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(answer)

    return script


def taking(pieces: list[bytes]) -> Script:
    """Take an upload as it comes, piece by piece, and say nothing."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        while piece := await exchange.piece():
            pieces.append(piece)

    return script


def json_answer(value: object, status: bytes = b"200 OK") -> Script:
    """Answer every request with the same JSON."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.json(value, status)

    return script


def sse_answer(
    events: Iterable[bytes], *, step: Callable[[], Awaitable[object]] | None = None
) -> Script:
    """Answer with a stream, one chunk for each event; `step` is awaited before each of them."""
    held = list(events)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for event in held:
            if step is not None:
                await step()
            exchange.chunk(event)
        exchange.end()

    return script


def in_turn(*scripts: Script) -> Script:
    """Follow another script on each connection; the last one from then on."""

    async def script(exchange: Exchange) -> None:
        await scripts[min(exchange.connection, len(scripts)) - 1](exchange)

    return script


def chat_events(words: Sequence[str], *, done: bool = True) -> list[bytes]:
    """Return the events of a chat stream, one word each, as an engine writes them."""
    events = [
        _event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        for word in words
    ]
    if done:
        events.append(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        events.append(b"data: [DONE]\n\n")
    return events


def _event(value: dict[str, object]) -> bytes:
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", **value}
    return b"data: %b\n\n" % orjson.dumps(whole)
