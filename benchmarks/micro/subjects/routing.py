"""What choosing a server costs, and being ready to finish a stream elsewhere.

The whole way of a request with the layer, less the whole way without it.
"""

import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.micro.messages import CHUNK
from benchmarks.micro.registry import Preparation, Work, benchmark
from benchmarks.micro.subjects.frame import a_frame
from benchmarks.micro.subjects.whole import Parts, chunks_between, proxy, requests_between
from llmproxy.assembly import assemble
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.routing.kept import KeptStream, Room
from llmproxy.settings import Settings
from llmproxy.stack import Part
from llmproxy.transport import Transport

MODEL = "meta-llama/Llama-3.3-70B-Instruct"  # as the questions name it
STREAM = 500  # chunks of one stream: less than what is kept at most


def routed(servers: int = 2, **settings: str) -> Parts:
    """Return the layer, with so many servers that are one."""
    urls = ",".join(f"http://127.0.0.1:{8000 + number}" for number in range(servers))
    made = Settings(upstreams=urls, middleware="routing", **settings)

    def parts(transport: Transport) -> Sequence[Part]:
        engines = assemble(made, a_frame().metrics, TrustedProxies(()), 0)
        for server in engines.registry.servers:
            server.transport = transport
            server.documents = {MODEL: {"id": MODEL}}
        return engines.parts

    return parts


async def per_request(parts: Parts) -> Preparation:
    with proxy(parts) as ours, proxy() as bare:
        yield Work(requests_between(*ours), requests_between(*bare))


async def per_chunk(parts: Parts, most: int, without: Parts = lambda _: ()) -> Preparation:
    """Measure a chunk of streams that have so many at most."""
    with proxy(parts) as ours, proxy(without) as bare:
        yield Work(chunks_between(*ours, most), chunks_between(*bare, most))


benchmark("routing.unary", "request")(partial(per_request, routed()))
benchmark("routing.unary, 8 servers", "request")(partial(per_request, routed(8)))
benchmark("routing.unary, prefix", "request")(partial(per_request, routed(8, routing="prefix")))
benchmark("routing.chunk", "chunk")(partial(per_chunk, routed(rescue="off"), sys.maxsize))
benchmark("routing.chunk, kept", "chunk")(partial(per_chunk, routed(), STREAM))
benchmark("routing.keeping", "chunk")(partial(per_chunk, routed(), STREAM, routed(rescue="off")))


@benchmark("routing.kept", "chunk")
async def kept() -> Preparation:
    """What looks at a chunk before it is kept, by itself; nearly all chunks are spared that."""

    def keep(count: int) -> int:
        stream = KeptStream(Room())
        for _ in range(count):
            stream.through(CHUNK)
        return count if stream.whole else 0

    async def run(count: int) -> int:
        kept = 0
        while kept < count:
            kept += keep(min(STREAM, count - kept))
        return kept

    yield Work(run)
