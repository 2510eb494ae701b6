"""What is known about the wire: bodies, paths, heads, the ends of streams."""

from benchmarks.micro.messages import (
    ANSWER_HEADERS,
    CHUNK,
    CLIENT_HEADERS,
    LAST_CHUNK,
    LONG_QUESTION,
    OUTGOING,
    PATH,
    QUESTION,
    RESPONSES_CHUNK,
    STREAM_HEADERS,
    UPSTREAM,
)
from benchmarks.micro.registry import Preparation, Work, benchmark, calls
from llmproxy.protocol.endpoints import CHAT, OTHER, Paths
from llmproxy.protocol.inference import read_inference
from llmproxy.protocol.request_head import origin_headers, request_headers, target_of
from llmproxy.protocol.response_head import Kind, kind_of, response_headers
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.records import Ending

VIA = b"1.1 llmproxy-0123456789ab"


# Of a request


@benchmark("protocol.read_inference, small", "body")
async def small_body() -> Preparation:
    """As most are; read by orjson."""
    yield calls(lambda asked: asked.model is not None, read_inference, QUESTION)


@benchmark("protocol.read_inference, 1 MB", "body")
async def large_body() -> Preparation:
    """A whole book; read by msgspec, which looks at a few fields only."""
    assert len(LONG_QUESTION) > 1_000_000
    yield calls(lambda asked: asked.stream, read_inference, LONG_QUESTION)


@benchmark("protocol.find_path, understood", "path")
async def understood_path() -> Preparation:
    yield calls(lambda found: found is CHAT, Paths((UPSTREAM,)).find, PATH)


@benchmark("protocol.find_path, passed on", "path")
async def path_passed_on() -> Preparation:
    yield calls(
        lambda found: found is OTHER, Paths((UPSTREAM,)).find, b"/v1/fine_tuning/jobs/ft-123/events"
    )


@benchmark("protocol.request_headers", "head")
async def request_head() -> Preparation:
    origin = origin_headers(
        CLIENT_HEADERS, client="127.0.0.1", scheme="http", trusted=False, via=VIA
    )
    yield calls(
        lambda headers: headers[-1] == origin[-1],
        request_headers,
        CLIENT_HEADERS,
        UPSTREAM,
        origin,
    )


@benchmark("protocol.origin_headers", "head")
async def origin() -> Preparation:
    """Of a caller that was here before: most connections carry many requests."""
    yield calls(
        lambda headers: (b"via", VIA) in headers,
        origin_headers,
        CLIENT_HEADERS,
        client="127.0.0.1",
        scheme="http",
        trusted=False,
        via=VIA,
    )


@benchmark("protocol.target_of", "target")
async def target() -> Preparation:
    yield calls(
        lambda target: target == OUTGOING.target, target_of, PATH, b"", UPSTREAM, native=False
    )


# Of an answer


@benchmark("protocol.kind_of, unary", "head")
async def kind_of_unary() -> Preparation:
    yield calls(lambda kind: kind is Kind.WHOLE, kind_of, ANSWER_HEADERS)


@benchmark("protocol.kind_of, stream", "head")
async def kind_of_stream() -> Preparation:
    yield calls(lambda kind: kind is Kind.EVENTS, kind_of, STREAM_HEADERS)


@benchmark("protocol.response_headers, unary", "head")
async def unary_head() -> Preparation:
    yield calls(
        lambda headers: len(headers) == 2, response_headers, ANSWER_HEADERS, Kind.WHOLE
    )  # length and type


@benchmark("protocol.response_headers, stream", "head")
async def stream_head() -> Preparation:
    yield calls(
        lambda headers: len(headers) == 3, response_headers, STREAM_HEADERS, Kind.EVENTS
    )  # the type, and two of ours


# Of a stream


@benchmark("protocol.note, chat", "chunk")
async def note_chat() -> Preparation:
    yield _notes(Ending.CHAT, CHUNK)


@benchmark("protocol.note, responses", "chunk")
async def note_responses() -> Preparation:
    """Looked for its end in each chunk, for that end may be longer than what is kept."""
    yield _notes(Ending.RESPONSES, RESPONSES_CHUNK)


@benchmark("protocol.note, 64 KB read", "chunk")
async def note_large() -> Preparation:
    """A read that has brought many events at once."""
    yield _notes(Ending.CHAT, CHUNK * (65_536 // len(CHUNK)))


@benchmark("protocol.finished", "stream")
async def finished() -> Preparation:
    """Once, when a stream is over."""
    tail = StreamTail(Ending.CHAT)
    for _ in range(100):
        tail.note(CHUNK)
    tail.note(LAST_CHUNK)
    yield calls(lambda whole: whole, tail.finished)


def _notes(ending: Ending, chunk: bytes) -> Work:
    async def run(count: int) -> int:
        tail = StreamTail(ending)
        note = tail.note
        for _ in range(count):
            note(chunk)
        return count if tail.last(len(chunk)) == chunk[-2048:] else 0

    return Work(run)
