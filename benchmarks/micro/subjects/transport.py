"""The way to an upstream: a call over a real socket, and its parts without one."""

import asyncio
from dataclasses import replace

from benchmarks.micro.messages import (
    ANSWER,
    ANSWER_BYTES,
    CHUNK,
    OUTGOING,
    QUESTION,
    STREAM_HEADERS,
    UPSTREAM,
    head_bytes,
    in_chunks,
)
from benchmarks.micro.registry import Preparation, Work, benchmark, calls
from benchmarks.micro.scripted_peer import scripted_peer
from benchmarks.micro.stand_ins import Owner, Wire
from llmproxy.transport.connect import transport_for
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.http1.head import write_head
from llmproxy.transport.http1.pool import Pool
from llmproxy.transport.limits import PoolLimits


@benchmark("transport.unary over loopback", "call")
async def unary_over_loopback() -> Preparation:
    with scripted_peer(ANSWER_BYTES) as port:
        transport = transport_for(replace(UPSTREAM, port=port))

        async def run(count: int) -> int:
            done = 0
            for _ in range(count):
                call = await transport.open(OUTGOING, connect=3.0, answer=60.0)
                while not call.over:
                    done += await call.read(60.0) == ANSWER
                call.close()
            return done

        yield Work(run)
        await transport.aclose()
        await asyncio.sleep(0)  # its sockets are closed in the next turn


@benchmark("transport.ask", "call")
async def ask() -> Preparation:
    """Head and body out; the call is let go at once."""
    connection, wire = _connection()

    async def run(count: int) -> int:
        before = wire.writes
        for _ in range(count):
            connection.ask(OUTGOING).close()
        return wire.writes - before

    yield Work(run)


@benchmark("transport.ask and answer", "call")
async def ask_and_answer() -> Preparation:
    """The same, and the answer in one read: parsed, given out, the connection given back."""
    connection, _ = _connection()

    async def run(count: int) -> int:
        done = 0
        for _ in range(count):
            call = connection.ask(OUTGOING)
            connection.feed(ANSWER_BYTES)
            done += await call.read(60.0) is not None and call.over
            call.close()
        return done

    yield Work(run)


@benchmark("transport.chunk to nobody", "chunk")
async def chunk_to_nobody() -> Preparation:
    """A chunk that nobody waits for: parsed, kept, read later."""
    connection, call = _streaming()
    wire_bytes = in_chunks(CHUNK)

    async def run(count: int) -> int:
        done = 0
        for _ in range(count):
            connection.feed(wire_bytes)
            done += await call.read(60.0) == CHUNK
        return done

    yield Work(run)
    call.close()


@benchmark("transport.chunk to a reader", "chunk")
async def chunk_to_a_reader() -> Preparation:
    """A chunk that somebody waits for: a future, a wake-up, a turn of the loop."""
    connection, call = _streaming()
    wire_bytes = in_chunks(CHUNK)
    loop = asyncio.get_running_loop()

    async def run(count: int) -> int:
        done = 0
        for _ in range(count):
            loop.call_soon(connection.feed, wire_bytes)
            done += await call.read(60.0) == CHUNK
        return done

    yield Work(run)
    call.close()


@benchmark("transport.write_head", "head")
async def request_head() -> Preparation:
    yield calls(lambda head: head.endswith(b"\r\n\r\n"), write_head, OUTGOING)


@benchmark("transport.pool", "take and return")
async def pool_take_and_return() -> Preparation:
    pool = Pool(PoolLimits(), asyncio.get_running_loop())
    assert await pool.place() is None
    connection, _ = _connection()
    pool.made(connection)
    pool.returned(connection)

    async def run(count: int) -> int:
        done = 0
        for _ in range(count):
            taken = pool.take_idle()
            assert taken is not None
            pool.returned(taken)
            done += taken is connection
        return done

    yield Work(run)
    pool.close()


def _connection() -> tuple[Connection, Wire]:
    connection, wire = Connection("gpu1", Owner(), asyncio.get_running_loop()), Wire()
    connection.connection_made(wire)
    return connection, wire


def _streaming() -> tuple[Connection, Http1Call]:
    connection, _ = _connection()
    call = connection.ask(OUTGOING._replace(body=QUESTION))
    connection.feed(head_bytes(STREAM_HEADERS))
    return connection, call
