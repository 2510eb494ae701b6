"""What keys and limits cost a request: the layers with their engines, in memory.

What is added to a chain without them, so that what they make others do is in it: the tap that
counts tokens, and the headers that an answer gets.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.micro.messages import (
    ANSWER,
    ANSWER_HEADERS,
    CHUNK,
    LAST_CHUNK,
    STREAM_HEADERS,
    STREAM_QUESTION,
)
from benchmarks.micro.registry import Preparation, Work, benchmark
from benchmarks.micro.stand_ins import ReadyTransport
from benchmarks.micro.subjects.frame import (
    a_frame,
    a_scope,
    chain,
    requests_through,
    stream_through,
)
from llmproxy.assembly import assemble
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.settings import Settings
from llmproxy.stack import Part

KEYS = "bench:sk-0123456789abcdef0123456789abcdef"  # as the client of the benchmarks has it
LIMITS = "100000000 req/min, 1000000000000 tok/min, 100000 concurrent"  # none that refuses

CHAINS = {
    "auth": Settings(upstreams="http://127.0.0.1:8000", keys=KEYS, middleware="auth"),
    "rate_limit": Settings(
        upstreams="http://127.0.0.1:8000", limits=LIMITS, middleware="rate_limit"
    ),
    "auth and rate_limit": Settings(
        upstreams="http://127.0.0.1:8000", keys=KEYS, limits=LIMITS, middleware="auth,rate_limit"
    ),
}


async def per_request(settings: Settings) -> Preparation:
    async with parts_of(settings) as parts:
        runs = []
        for each in (parts, ()):
            transport = ReadyTransport(ANSWER_HEADERS, last=ANSWER)
            runs.append(requests_through(chain(transport, a_frame(), each), a_scope()))
        yield Work(*runs)


async def per_chunk(settings: Settings) -> Preparation:
    async with parts_of(settings) as parts:
        runs = []
        for each in (parts, ()):
            transport = ReadyTransport(STREAM_HEADERS, last=LAST_CHUNK, chunk=CHUNK)
            app = chain(transport, a_frame(), each)
            runs.append(stream_through(app, transport, STREAM_QUESTION))
        yield Work(*runs)


@asynccontextmanager
async def parts_of(settings: Settings) -> AsyncIterator[tuple[Part, ...]]:
    """Make the parts of a chain as `serve` does."""
    engines = assemble(settings, a_frame().metrics, TrustedProxies(()), 0)
    await engines.start()
    try:
        yield engines.parts
    finally:
        await engines.aclose()


for _name, _settings in CHAINS.items():
    benchmark(f"limits.{_name}", "request")(partial(per_request, _settings))
    benchmark(f"limits.{_name}, chunk", "chunk")(partial(per_chunk, _settings))
