"""The whole way of a request without the kernel: both connections, the frame, the relay.

What the load benchmark shows beyond these is sockets and the event loop.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.micro.messages import (
    ANSWER_BYTES,
    CHUNK,
    LAST_BYTES,
    LAST_CHUNK,
    STREAM_HEADERS,
    STREAM_QUESTION,
    head_bytes,
    in_chunks,
    request_bytes,
)
from benchmarks.micro.registry import Preparation, Run, Work, benchmark
from benchmarks.micro.stand_ins import EngineWire, Wire
from benchmarks.micro.subjects.frame import a_frame, chain
from benchmarks.micro.subjects.server import connected, written
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.stack import Part
from llmproxy.transport import Transport
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.http1.pool import Pool
from llmproxy.transport.interface import Outgoing
from llmproxy.transport.limits import PoolLimits


@benchmark("whole.unary", "request")
async def unary() -> Preparation:
    with proxy() as ends:
        yield Work(requests_between(*ends))


@benchmark("whole.chunk", "chunk")
async def chunk() -> Preparation:
    with proxy() as ends:
        yield Work(chunks_between(*ends))


def requests_between(protocol: GuardedProtocol, client: Wire, engine: EngineWire) -> Run:
    """Ask one question after the other."""
    engine.first = ANSWER_BYTES
    request = request_bytes()

    async def run(count: int) -> int:
        before, asked = client.writes, engine.writes
        for number in range(1, count + 1):
            protocol.data_received(request)
            await written(client, before + number)
        return min(client.writes - before, engine.writes - asked)

    return run


def chunks_between(
    protocol: GuardedProtocol, client: Wire, engine: EngineWire, most: int = sys.maxsize
) -> Run:
    """Ask for streams of at most so many chunks, until that many were sent."""
    engine.first = head_bytes(STREAM_HEADERS)
    engine.chunk = in_chunks(CHUNK)
    engine.end = in_chunks(LAST_CHUNK) + LAST_BYTES
    request = request_bytes(STREAM_QUESTION)

    async def run(count: int) -> int:
        sent = 0
        while sent < count:
            writes = client.writes
            engine.chunks = min(most, count - sent)
            protocol.data_received(request)
            await written(client, writes + engine.chunks + 1)
            sent += client.writes - writes - 1
        return sent

    return run


LASTING = PoolLimits(
    keepalive=1e6, max_age=1e6
)  # or it would be gone after 4 s of measuring others


class OneConnection:
    """Our transport, on a connection that is there already."""

    def __init__(self, wire: EngineWire) -> None:
        loop = asyncio.get_running_loop()
        self._pool = Pool(LASTING, loop)
        wire.connection = self._connection = Connection("gpu1", self._pool, loop)
        self._connection.connection_made(wire)
        self._pool.made(self._connection)
        self._pool.returned(self._connection)

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Http1Call:
        connection = self._pool.take_idle()
        assert connection is not None
        call = connection.ask(outgoing)
        await call.head(answer)
        return call

    async def aclose(self) -> None:
        self._pool.close()

    def statistics(self) -> dict[str, int]:
        return self._pool.statistics()


Parts = Callable[[Transport], Sequence[Part]]


@contextmanager
def proxy(
    parts: Parts = lambda transport: (),
) -> Iterator[tuple[GuardedProtocol, Wire, EngineWire]]:
    """Return a proxy's connection to a client, and the wires on its both ends."""
    engine = EngineWire(asyncio.get_running_loop())
    transport = OneConnection(engine)
    protocol, client = connected(chain(transport, a_frame(), parts(transport)))
    yield protocol, client, engine
