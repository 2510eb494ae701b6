"""What keys and limits cost a request: the layers with their engines, in memory.

What is added to the whole way of a request without them, from one connection to the other. So
what they make others do is in it: the tap that counts tokens, the headers that an answer gets,
and that everything runs in caches that it has to share.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.micro.registry import Preparation, Work, benchmark
from benchmarks.micro.subjects.frame import a_frame
from benchmarks.micro.subjects.whole import chunks_between, proxy, requests_between
from llmproxy.assembly import assemble
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.settings import Settings
from llmproxy.stack import Part

KEYS = "bench:sk-0123456789abcdef0123456789abcdef"  # as the client of the benchmarks has it
LIMITS = "100000000 req/min, 1000000000000 tok/min, 1000 concurrent"  # none that refuses

CHAINS = {
    "auth": Settings(upstreams="http://127.0.0.1:8000", keys=KEYS, middleware="auth"),
    "rate_limit": Settings(
        upstreams="http://127.0.0.1:8000", limits=LIMITS, middleware="auth,rate_limit"
    ),
    "auth and rate_limit": Settings(
        upstreams="http://127.0.0.1:8000", keys=KEYS, limits=LIMITS, middleware="auth,rate_limit"
    ),
}


async def per_request(settings: Settings) -> Preparation:
    async with parts_of(settings) as parts:
        with proxy(lambda _: parts) as asked, proxy() as bare:
            yield Work(requests_between(*asked), requests_between(*bare))


async def per_chunk(settings: Settings) -> Preparation:
    async with parts_of(settings) as parts:
        with proxy(lambda _: parts) as asked, proxy() as bare:
            yield Work(chunks_between(*asked), chunks_between(*bare))


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
