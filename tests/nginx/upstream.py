"""A server in llmproxy's place of which the test controls every byte.

Each request arrives as a `Call` in the order in which its head came in, and the test decides
what happens to it. Nothing is answered by itself unless the test says `answering()`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 10.0  # seconds: only a broken front needs them


@dataclass(slots=True)
class Call:
    """One request as it came in, and the way back."""

    connection: int  # which connection it came over, counted from 1
    method: str
    target: str
    headers: list[tuple[str, str]]  # names in lower case
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """Return the value of a header, which must not be there twice."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} arrived {len(values)} times: {values}"
        return values[0] if values else None

    async def read_body(self) -> bytes:
        """Return the body, counted or chunked."""
        if self.header("transfer-encoding") == "chunked":
            parts = []
            while part := await self.read_chunk():
                parts.append(part)
            return b"".join(parts)
        return await self.read_exactly(int(self.header("content-length") or 0))

    async def read_exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(count)

    async def read_chunk(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(
        self, body: bytes = b'{"ok":true}', *, status: str = "200 OK", headers: str = ""
    ) -> None:
        """Send a whole answer and leave the connection open for the next request."""
        await self.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.done.set()

    async def begin_stream(self, *, headers: str = "") -> None:
        await self.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )

    async def send_chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")
        self.done.set()

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def left(self) -> None:
        """Return when the other side has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                assert await self.reader.read(1) == b"", "more bytes instead of the end"

    def hang_up(self) -> None:
        self.writer.close()
        self.done.set()


class Upstream:
    """Listens on a unix socket or a loopback port.

    With `reads`, every GET is answered with it at once: an engine is probed all the time.
    """

    def __init__(self, *, reads: bytes | None = None) -> None:
        self.reads = reads
        self.address = ""  # as in an nginx `server` line
        self.connections = 0
        self.calls: list[Call] = []  # all of them, in the order in which their heads came in
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def calls_seen(self) -> int:
        return len(self.calls)

    async def next_call(self) -> Call:
        """Return the next request; its body is still to be read."""
        async with asyncio.timeout(PATIENCE):
            return await self._calls.get()

    @asynccontextmanager
    async def answering(
        self, headers: str = "", *, status: str = "200 OK", body: str = '{"ok":true}'
    ) -> AsyncIterator[None]:
        """Answer every request like this meanwhile."""

        async def answer_all() -> None:
            while True:
                call = await self._calls.get()
                await call.read_body()
                await call.answer(body.encode(), status=status, headers=headers)

        task = asyncio.create_task(answer_all())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    @asynccontextmanager
    async def listening(self, path: Path | None = None) -> AsyncIterator["Upstream"]:
        if path is not None:
            server = await asyncio.start_unix_server(self._serve, path)
            self.address = f"unix:{path}"
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head[:-4].split("\r\n")
                method, target, _ = first.split(" ")
                pairs = [line.split(":", 1) for line in lines]
                headers = [(name.lower(), value.strip()) for name, value in pairs]
                call = Call(number, method, target, headers, reader, writer)
                if self.reads is not None and method == "GET":
                    await call.answer(self.reads)
                    continue
                self.calls.append(call)
                self._calls.put_nowait(call)
                await call.done.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # nginx let go of the connection
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
