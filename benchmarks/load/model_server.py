"""A scripted model server: fast, punctual, and without a mind of its own.

    python -m benchmarks.load.model_server --port 0

It prints the port it listens on. A chat request is answered by the script in its question: as
many chunks as it says, as far apart as it says. All streams share one timer
that ticks each millisecond: a timer per stream costs more than the chunk it sends.
"""

import argparse
import asyncio
import gc
import os
import re
import time
from collections import defaultdict
from typing import cast

import uvloop

from benchmarks.load import wire

TICK = 0.001
TICK_NS = 1_000_000

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
JSON_HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
CONTENT_FRAME = wire.content_frame()
FINISH_FRAME = wire.framed(wire.FINISH)
DONE_FRAME = wire.framed(wire.DONE) + wire.LAST_CHUNK

MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","owned_by":"bench"}]}'
# Routers of engines ask for these before they send anything.
PAGES = {
    b"/health": b'{"status":"ok"}',
    b"/v1/models": MODELS,
    b"/get_model_info": b'{"model_path":"bench","is_generation":true}',
    b"/get_server_info": b'{"model_path":"bench","served_model_name":"bench"}',
}

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_SCRIPT = re.compile(rb"Request (\d{8}), (\d+) chunks, (\d+) ms apart")
_STREAM = re.compile(rb'"stream":\s*true')
_WITH_USAGE = re.compile(rb'"include_usage":\s*true')


class Pacer:
    """Sends the chunks of all streams from one timer, which rests when no stream is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: defaultdict[int, list[Stream]] = defaultdict(list)
        self._ticked = 0

    def schedule(self, stream: "Stream", due_ns: int) -> None:
        if not self._due:
            self._ticked = time.monotonic_ns() // TICK_NS
            self._loop.call_later(TICK, self._tick)
        self._due[max(due_ns // TICK_NS + 1, self._ticked + 1)].append(stream)

    def _tick(self) -> None:
        now = time.monotonic_ns() // TICK_NS
        while self._ticked < now:
            self._ticked += 1
            for stream in self._due.pop(self._ticked, ()):
                if (due := stream.send_next()) is not None:
                    self._due[max(due // TICK_NS + 1, self._ticked + 1)].append(stream)
        if self._due:
            self._loop.call_later(TICK, self._tick)


class Stream:
    """One answer on its way."""

    def __init__(
        self, connection: "Connection", script: tuple[int, int, int], *, with_usage: bool
    ) -> None:
        self._connection = connection
        self._number, self._chunks, gap_ms = script
        self._gap_ns = gap_ms * 1_000_000
        self._with_usage = with_usage
        self._place = 0
        self._due = time.monotonic_ns()

    def send_next(self) -> int | None:
        """Send one chunk, or the end; return when the next one is due, if there is one."""
        connection = self._connection
        if connection.gone:
            return None
        if self._place == self._chunks:
            connection.write(FINISH_FRAME)
            if self._with_usage:
                connection.write(wire.framed(wire.USAGE % (self._chunks, 57 + self._chunks)))
            connection.write(DONE_FRAME)
            return None
        connection.write(CONTENT_FRAME % (self._number, self._place, time.monotonic_ns()))
        self._place += 1
        self._due += self._gap_ns
        return self._due


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next request."""

    def __init__(self, pacer: Pacer) -> None:
        self.gone = False
        self._pacer = pacer
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._descriptor: int = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True

    def write(self, data: bytes) -> None:
        """Write now: the loop would gather the writes of a tick, and the chunk be older than
        the time it carries."""
        if self._transport.get_write_buffer_size():
            self._transport.write(data)
            return
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.gone = True
            self._transport.abort()
            return
        if written < len(data):
            self._transport.write(data[written:])

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (head_end := self._held.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._held, 0, head_end)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self._held) < end:
                return
            head, body = self._held[:head_end], self._held[head_end + 4 : end]
            self._held = self._held[end:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, target = head.split(b" ", 2)[:2]
        if method == b"POST" and target == b"/v1/chat/completions":
            if not body:
                self._send_json(411, b'{"error":{"message":"this server wants a length"}}')
                return
            found = _SCRIPT.search(body)
            script = (int(found[1]), int(found[2]), int(found[3])) if found else (0, 16, 10)
            if not _STREAM.search(body):
                self._send_json(200, wire.answer(script[0]))
                return
            self.write(STREAM_HEAD)
            stream = Stream(self, script, with_usage=_WITH_USAGE.search(body) is not None)
            self._pacer.schedule(stream, stream.send_next() or 0)
            return
        page = PAGES.get(target.partition(b"?")[0])
        self._send_json(200 if page else 404, page or b'{"error":{"message":"not found"}}')

    def _send_json(self, status: int, body: bytes) -> None:
        self.write(JSON_HEAD % (status, len(body)) + body)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(
        lambda: Connection(pacer), "127.0.0.1", port, backlog=4096, reuse_address=True
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()  # a collection would make the chunks of all streams late at once
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
