"""Clients for the front: httpx for what a caller does, raw bytes for what it should not do."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.nginx.front import NAME, Front

PATIENCE = 10.0  # seconds: only a broken front needs them
FRAME = 16384  # bytes: the largest HTTP/2 frame that needs no agreement
CHAT = "/v1/chat/completions"


async def _ask_for_the_name(request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = NAME


@asynccontextmanager
async def caller(
    front: Front, context: ssl.SSLContext, *, http2: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that reaches the front at its loopback port and asks for its name."""
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(verify=context, http1=not http2, http2=http2),
        base_url=f"https://127.0.0.1:{front.port}",
        headers={"host": NAME},
        event_hooks={"request": [_ask_for_the_name]},
        timeout=PATIENCE,
    ) as client:
        yield client


@asynccontextmanager
async def plain_caller(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    """A client without TLS."""
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(),
        base_url=f"http://127.0.0.1:{front.plain_port}",
        headers={"host": NAME},
        timeout=PATIENCE,
    ) as client:
        yield client


async def begin(
    client: httpx.AsyncClient, method: str = "POST", path: str = CHAT
) -> httpx.Response:
    """Send a request and return as soon as the head of the answer is there."""
    request = client.build_request(method, path, json={} if method == "POST" else None)
    return await client.send(request, stream=True)


async def take(chunks: AsyncIterator[bytes], count: int) -> bytes:
    """Return the next `count` bytes of a stream."""
    taken = b""
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            taken += await anext(chunks)
    return taken


@dataclass(slots=True)
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class RawConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send bytes; a front that has refused already may not want them all."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def get(self, path: str) -> None:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())

    async def answer(self) -> RawAnswer:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return RawAnswer(int(first.split(" ")[1]), headers, body)


@asynccontextmanager
async def raw(
    front: Front, context: ssl.SSLContext | None, *, name: str = NAME, port: int | None = None
) -> AsyncIterator[RawConnection]:
    """A connection for bytes that no client library would send."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        port or (front.plain_port if context is None else front.port),
        ssl=context,
        server_hostname=None if context is None else name,
    )
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@dataclass(slots=True)
class Http2Connection:
    """HTTP/2 frame by frame.

    httpx never resets a stream that it leaves, and both it and h2 give up their running
    streams at a GOAWAY, which HTTP/2 does not ask for.
    """

    connection: RawConnection
    encoder: Encoder = field(default_factory=Encoder)
    decoder: Decoder = field(default_factory=Decoder)
    frames: list[Frame] = field(default_factory=list)

    async def begin(self) -> None:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        await self.connection.send(preface + SettingsFrame().serialize())

    async def post(
        self,
        path: str,
        *,
        stream: int,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"{}",
        complete: bool = True,
    ) -> None:
        pairs = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", path)]
        block = self.encoder.encode([*pairs, *headers])
        first, *rest = [block[at : at + FRAME] for at in range(0, len(block), FRAME)]
        frames: list[Frame] = [HeadersFrame(stream, first)]
        frames += [ContinuationFrame(stream, part) for part in rest]
        frames[-1].flags.add("END_HEADERS")
        frames.append(DataFrame(stream, body, flags=["END_STREAM"] if complete else []))
        await self.connection.send(b"".join(frame.serialize() for frame in frames))

    async def reset(self, *, stream: int) -> None:
        await self.connection.send(RstStreamFrame(stream, error_code=8).serialize())  # CANCEL

    async def take(self, *, stream: int, count: int) -> bytes:
        """Return the next `count` bytes of a stream's body."""
        taken = b""
        while len(taken) < count:
            frame = await self.next_frame()
            if isinstance(frame, DataFrame) and frame.stream_id == stream:
                taken += frame.data
        assert len(taken) == count
        return taken

    async def answer(self, *, stream: int) -> RawAnswer:
        """Return a whole answer."""
        headers: dict[str, str] = {}
        body = b""
        over = False
        while not over:
            frame = await self.next_frame()
            assert not isinstance(frame, GoAwayFrame), frame
            over = frame.stream_id == stream and "END_STREAM" in frame.flags
            if isinstance(frame, HeadersFrame):
                headers |= {str(n): str(v) for n, v in self.decoder.decode(frame.data)}
            elif isinstance(frame, DataFrame):
                body += frame.data
        return RawAnswer(int(headers.pop(":status")), headers, body)

    async def ended(self, *, stream: int) -> None:
        """Wait until the front says that the stream is complete."""
        while "END_STREAM" not in (frame := await self.next_frame()).flags:
            assert not isinstance(frame, RstStreamFrame), frame
        assert frame.stream_id == stream

    async def goodbye(self) -> GoAwayFrame:
        """Wait until the front says why it ends the connection."""
        while not isinstance(frame := await self.next_frame(), GoAwayFrame):
            pass
        return frame

    async def next_frame(self) -> Frame:
        async with asyncio.timeout(PATIENCE):
            head = await self.connection.reader.readexactly(9)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await self.connection.reader.readexactly(length)))
        self.frames.append(frame)
        return frame


@asynccontextmanager
async def http2_connection(front: Front, context: ssl.SSLContext) -> AsyncIterator[Http2Connection]:
    async with raw(front, context) as opened:
        connection = Http2Connection(opened)
        await connection.begin()
        yield connection


def assert_refused(answer: httpx.Response | RawAnswer, status: int, code: str) -> None:
    """The answer has this status and a body from which OpenAI clients can tell the reason."""
    body = answer.content if isinstance(answer, httpx.Response) else answer.body
    assert (answer.status_code if isinstance(answer, httpx.Response) else answer.status) == status
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"]
