"""What it costs to know what a request has used: the tap, and what makes streams tell.

What is added to the whole way of a request without it, as in `limits`, of which it is a part.
"""

from benchmarks.micro.messages import ANSWER
from benchmarks.micro.registry import Preparation, Work, benchmark, calls
from benchmarks.micro.subjects.whole import chunks_between, proxy, requests_between
from llmproxy.protocol.usage_plain import plain_usage
from llmproxy.stack import Part

USAGE = (Part(usage=True),)


@benchmark("usage.tap", "request")
async def tap_per_request() -> Preparation:
    """With what observe does with the count: two counters, two fields of its line."""
    with proxy(lambda _: USAGE) as told, proxy() as bare:
        yield Work(requests_between(*told), requests_between(*bare))


@benchmark("usage.tap, chunk", "chunk")
async def tap_per_chunk() -> Preparation:
    """Of a stream that was made to tell, so that each chunk is looked at."""
    with proxy(lambda _: USAGE) as told, proxy() as bare:
        yield Work(chunks_between(*told), chunks_between(*bare))


@benchmark("usage.plain", "answer")
async def plain() -> Preparation:
    yield calls(lambda usage: usage is not None and usage.total == 116, plain_usage, ANSWER)
