"""Our connection to a client: from the bytes of a request to those of its answer."""

import asyncio

from uvicorn.config import Config
from uvicorn.server import ServerState

from benchmarks.micro.messages import (
    ANSWER,
    ANSWER_HEADERS,
    CHUNK,
    LAST_CHUNK,
    STREAM_HEADERS,
    in_chunks,
    request_bytes,
)
from benchmarks.micro.registry import Preparation, Work, benchmark
from benchmarks.micro.stand_ins import Answering, Wire
from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.types import ASGIApp

MOST_IDLE_TURNS = 1000  # of the loop; no answer takes more than a few


@benchmark("server.unary", "request")
async def unary() -> Preparation:
    """A request in one read, an app that answers at once, the answer in one write."""
    protocol, wire = connected(Answering(ANSWER_HEADERS, ANSWER))
    request = request_bytes()

    async def run(count: int) -> int:
        before = wire.writes
        for number in range(1, count + 1):
            protocol.data_received(request)
            await written(wire, before + number)
        return wire.writes - before if wire.last.endswith(ANSWER) else 0

    yield Work(run)


@benchmark("server.chunk", "chunk")
async def chunk() -> Preparation:
    """`send` of a chunk, framed and written."""
    app = Answering(STREAM_HEADERS, LAST_CHUNK)
    protocol, wire = connected(app)
    request = request_bytes()
    framed = len(in_chunks(CHUNK))

    async def run(count: int) -> int:
        app.chunks = count
        writes, size = wire.writes, wire.size
        protocol.data_received(request)
        await written(wire, writes + count + 1)
        ended = wire.last.endswith(b"0\r\n\r\n")
        return (wire.size - size) // framed if ended else 0

    yield Work(run)


async def written(wire: Wire, writes: int) -> None:
    """Return once the wire has had so many writes, or nothing has been written for long."""
    idle = 0
    while wire.writes < writes and idle < MOST_IDLE_TURNS:
        before = wire.writes
        await asyncio.sleep(0)
        idle = 0 if wire.writes > before else idle + 1


def connected(app: ASGIApp) -> tuple[GuardedProtocol, Wire]:
    """Return a connection as uvicorn makes it, and what it writes to."""
    config = Config(app, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")]
    protocol = GuardedProtocol(
        config,
        state,
        {},
        bounds=Bounds(),
        connections=Connections(0),
        loop=asyncio.get_running_loop(),
    )
    wire = Wire()
    protocol.connection_made(wire)
    return protocol, wire
