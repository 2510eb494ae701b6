"""Passing one answer on, from a call that is always ready to a client that takes everything."""

from benchmarks.micro.messages import ANSWER, ANSWER_HEADERS, STREAM_HEADERS
from benchmarks.micro.registry import Preparation, Work, benchmark
from benchmarks.micro.stand_ins import ReadyCall, Sink, ready_stream
from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.records import Clocks, Ending
from llmproxy.relay import Relay
from llmproxy.stalls import Delivery
from llmproxy.time_left import FOR_EVER

CLOCKS = Clocks()


@benchmark("relay.chunk", "chunk")
async def chunk() -> Preparation:
    async def run(count: int) -> int:
        sink = Sink()
        await pass_on(ready_stream(count, STREAM_HEADERS), sink)
        return sink.chunks

    yield Work(run)


@benchmark("relay.unary", "answer")
async def unary() -> Preparation:
    async def run(count: int) -> int:
        sink = Sink()
        for _ in range(count):
            await pass_on(ReadyCall(ANSWER_HEADERS, b"", 0, ANSWER), sink)
        return min(sink.heads, sink.ends)

    yield Work(run)


@benchmark("relay.stream of one", "answer")
async def stream_of_one() -> Preparation:
    """What a stream costs besides its chunks."""

    async def run(count: int) -> int:
        sink = Sink()
        for _ in range(count):
            await pass_on(ready_stream(0, STREAM_HEADERS), sink)
        return min(sink.heads, sink.ends)

    yield Work(run)


async def pass_on(call: ReadyCall, sink: Sink) -> None:
    """Relay one answer."""
    ctx = RequestContext("a", "b", clock.now(), {})
    relay = Relay(ctx, call, sink.send, Delivery(), CLOCKS)
    await relay.run(Ending.CHAT, first_byte_due=clock.now() + 120.0, deadline=FOR_EVER)
