"""The tap is set up, and a stream is made to tell what it has counted."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from llmproxy.context import SCOPE_KEY, RequestContext, get_context
from llmproxy.errors import UpstreamBroken
from llmproxy.middleware.usage import LONGEST_REFUSAL, UsageMiddleware
from llmproxy.protocol.endpoints import MODELS, NATIVE, UNDERSTOOD
from llmproxy.protocol.inference import read_inference
from llmproxy.protocol.usage_option import Refusals
from llmproxy.records import Usage
from llmproxy.turns import STEP
from llmproxy.types import ASGIApp, Header, Message, Receive, Scope, Send, Writer, writer_of
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context
from tests.support.upstream import chat_events

EVENTS = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
WORDS = chat_events(["Hel", "lo"])
COUNT = b'data: {"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":2}}\n\n'
BODY = b'{"model":"m","stream":true}'
WITH_OPTION = b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'


class Engine:
    """Answers with what it is given, and keeps what it was asked."""

    def __init__(
        self,
        chunks: Sequence[bytes],
        *,
        status: int = 200,
        headers: list[Header] = EVENTS,
        without: "Engine | None" = None,
    ) -> None:
        self.asked: list[bytes] = []
        self.chunks = chunks
        self.status = status
        self.headers = headers
        self.without = without  # answers what comes without the option

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        assert isinstance(body, bytes)
        self.asked.append(body)
        if self.without is not None and ctx.outgoing is None:
            await self.without(scope, receive, send)
            return
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def through(
    app: ASGIApp, body: bytes = BODY, path: bytes = b"/v1/chat/completions", **options: Any
) -> tuple[RequestContext, Exchange]:
    """Drive the layer for a request whose body was read."""
    known = {**UNDERSTOOD, **NATIVE}[path]
    ctx = make_context(endpoint=known, path=path, body=body, inference=read_inference(body))
    return ctx, await drive(app, ctx=ctx, body=body, **options)


async def test_a_stream_is_asked_for_its_count_and_the_caller_does_not_see_it() -> None:
    """What goes to the client is what it would have got; the tap knows more."""
    engine = Engine([*WORDS[:-1], COUNT, WORDS[-1]])

    ctx, seen = await through(UsageMiddleware(engine))

    assert engine.asked == [WITH_OPTION]
    assert ctx.body == BODY
    assert seen.body == b"".join(WORDS)
    assert seen.complete
    assert ctx.tap is not None
    ctx.tap.begin(200, EVENTS)
    assert ctx.tap.usage() == Usage(30, 2)


async def test_a_large_body_gets_the_option_too() -> None:
    """It is put together in another way, and comes out alike."""
    engine = Engine(WORDS)
    rest = b'"model":"m","stream":true,"messages":"%b"}' % (b"x" * 3 * STEP)

    await through(UsageMiddleware(engine), b"{" + rest)

    assert engine.asked == [b'{"stream_options":{"include_usage":true},' + rest]


async def test_ordinary_chunks_are_the_very_objects() -> None:
    """And each is sent before the next exists."""
    _, seen = await through(UsageMiddleware(Engine(WORDS)))

    assert len(seen.chunks) == len(WORDS) + 1
    assert all(sent is given for sent, given in zip(seen.chunks, WORDS, strict=False))


async def test_a_chunk_of_which_nothing_is_left_is_not_sent() -> None:
    """An empty body message would be an empty chunk on some servers: the end."""
    _, seen = await through(UsageMiddleware(Engine([WORDS[0], COUNT[:40], COUNT[40:], WORDS[-1]])))

    assert seen.chunks == [WORDS[0], WORDS[-1], b""]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([b'data: {"id":"1","obj'], id="an_event_that_is_cut_off"),
        pytest.param([b"data: {}"], id="an_event_without_its_end"),
    ],
)
async def test_what_was_held_back_is_sent_at_the_end(extra: list[bytes]) -> None:
    """Nothing of a stream that ends oddly is lost."""
    _, seen = await through(UsageMiddleware(Engine([*WORDS, *extra])))

    assert seen.body == b"".join([*WORDS, *extra])
    assert seen.complete


async def test_chunks_may_be_of_another_type() -> None:
    """A foreign app may send any kind of bytes."""
    chunks: list[Any] = [bytearray(WORDS[0]), memoryview(COUNT), memoryview(WORDS[-1])]

    _, seen = await through(UsageMiddleware(Engine(chunks)))

    assert seen.body == WORDS[0] + WORDS[-1]


async def test_a_length_that_is_no_longer_true_is_not_told() -> None:
    """A foreign app may have announced it."""
    chunks = [WORDS[0], COUNT, WORDS[-1]]
    length = (b"content-length", b"%d" % sum(map(len, chunks)))

    _, seen = await through(UsageMiddleware(Engine(chunks, headers=[*EVENTS, length])))

    assert seen.complete
    assert seen.header(b"content-length") is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(
            b"/v1/chat/completions",
            b'{"stream":true,"stream_options":{"include_usage":true}}',
            id="asked_already",
        ),
        pytest.param(b"/v1/chat/completions", b'{"model":"m"}', id="no_stream"),
        pytest.param(b"/v1/chat/completions", b'{"stream":true,"stream_options":[]}', id="odd"),
        pytest.param(b"/v1/messages", BODY, id="messages_always_tell"),
        pytest.param(b"/v1/responses", BODY, id="responses_always_tell"),
        pytest.param(b"/api/chat", BODY, id="ollama_always_tells"),
        pytest.param(b"/v1/embeddings", b'{"model":"m"}', id="embeddings"),
    ],
)
async def test_what_needs_no_asking_is_left_alone(path: bytes, body: bytes) -> None:
    """The caller's bytes go out, the answer passes whole, and no wrapper stands in its way."""
    engine = Engine([*WORDS[:-1], COUNT, WORDS[-1]])
    sends: list[Send] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sends.append(send)
        await engine(scope, receive, send)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        sends.append(send)
        await UsageMiddleware(app)(scope, receive, send)

    ctx, seen = await through(outer, body, path)

    assert engine.asked == [body]
    assert ctx.outgoing is None
    assert ctx.tap is not None
    assert seen.body == b"".join(engine.chunks)
    assert sends[0] is sends[1]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"path": b"/v1/models", "endpoint": MODELS}, id="no_model_at_work"),
        pytest.param({"method": "GET"}, id="nothing_asked"),
    ],
)
async def test_what_costs_no_tokens_has_no_tap(options: dict[str, Any]) -> None:
    """Nothing is to be learnt."""
    method = options.pop("method", "POST")
    ctx = make_context(body=BODY, inference=read_inference(BODY), **options)

    seen = await drive(UsageMiddleware(Engine([b"x"], headers=JSON)), ctx=ctx, method=method)

    assert ctx.tap is None
    assert ctx.outgoing is None
    assert seen.body == b"x"


async def test_an_answer_that_is_no_stream_passes_with_its_length() -> None:
    """Whatever was asked for: the engine's own word is what counts."""
    answer = json.dumps({"choices": [], "usage": {"prompt_tokens": 1}}).encode()
    length = (b"content-length", b"%d" % len(answer))

    _, seen = await through(UsageMiddleware(Engine([answer], headers=[*JSON, length])))

    assert seen.body == answer
    assert seen.header(b"content-length") == length[1]


REFUSED = Engine([b'{"message":"Unknown field: stream_', b'options"}'], status=400, headers=JSON)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_engine_that_refuses_the_option_is_asked_without_it(status: int) -> None:
    """The caller sees nothing of it, and the next request goes without at once."""
    engine = Engine(REFUSED.chunks, status=status, headers=JSON, without=Engine(WORDS))
    layer = UsageMiddleware(engine)

    first, seen = await through(layer)
    _, again = await through(layer)
    _, other = await through(layer, BODY.replace(b'"m"', b'"n"'))

    assert engine.asked[:3] == [WITH_OPTION, BODY, BODY]
    assert engine.asked[3] == WITH_OPTION.replace(b'"m"', b'"n"')
    assert [each.status for each in (seen, again, other)] == [200, 200, 200]
    assert seen.body == again.body == b"".join(WORDS)
    assert first.outgoing is None


def asking() -> RequestContext:
    """Return the context of a request for a stream."""
    path = b"/v1/chat/completions"
    return make_context(
        endpoint=UNDERSTOOD[path], path=path, body=BODY, inference=read_inference(BODY)
    )


class Wire(Writer):
    """A server that takes pieces of a body at once, as ours does."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[bytes] = []
        self.waits = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.pieces.append(message["body"])

    def write(self, body: bytes) -> bool:
        self.pieces.append(body)
        return True

    async def room(self) -> None:
        self.waits += 1


class Flowing(Engine):
    """The same engine behind a relay that writes what it can at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        self.asked.append(b"with" if ctx.outgoing is not None else b"without")
        if self.without is not None and ctx.outgoing is None:
            await self.without(scope, receive, send)
            return
        writer = writer_of(send)
        assert writer is not None
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.chunks[0], "more_body": True})
        for chunk in self.chunks[1:]:
            if not writer.write(chunk):
                await writer.room()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def written(app: ASGIApp, ctx: RequestContext | None = None) -> Wire:
    """Drive the layer under a server that takes pieces at once."""
    ctx = ctx if ctx is not None else asking()
    wire = Wire()

    async def receive() -> Message:
        raise AssertionError

    await app({"type": "http", "method": "POST", SCOPE_KEY: ctx}, receive, wire.send)
    return wire


async def test_pieces_that_are_written_at_once_are_looked_at_too() -> None:
    """The count does not reach the client, wherever it is cut."""
    for cut in range(1, len(COUNT)):
        chunks = [*WORDS[:-1], COUNT[:cut], COUNT[cut:], WORDS[-1]]

        wire = await written(UsageMiddleware(Flowing(chunks)))

        assert b"".join(wire.pieces) == b"".join(WORDS)


OTHERS = {
    "vllm": WORDS[1],
    "sglang": WORDS[1].replace(b"}]}\n\n", b'}],"usage":null}\n\n'),
    "llama.cpp": WORDS[1].replace(b"}]}\n\n", b'}],"object":"chat.completion.chunk"}\n\n'),
    "crlf": WORDS[1].replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("at_once", [False, True], ids=["as_messages", "at_once"])
@pytest.mark.parametrize("word", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("count", [COUNT, COUNT.replace(b"\n", b"\r"), WORDS[1] + COUNT])
async def test_a_long_stream_is_counted_and_its_count_taken_out(
    at_once: bool, word: bytes, count: bytes
) -> None:
    """However its events end, and whatever stands in one piece with the count."""
    cut = [word + word[:30], word[30:] + word[:50], word[50:]]  # the ends are held back
    pieces = [*[word] * 100, *cut, word, count + word, word + count, word, WORDS[-1]]
    stream = b"".join(pieces)
    for ours in (COUNT, COUNT.replace(b"\n", b"\r")):
        stream = stream.replace(ours, b"")
    ctx = asking()

    if at_once:
        wire = await written(UsageMiddleware(Flowing(pieces)), ctx)
        assert b"".join(wire.pieces) == stream
    else:
        seen = await drive(UsageMiddleware(Engine(pieces)), ctx=ctx, body=BODY)
        assert seen.body == stream

    assert ctx.tap is not None
    assert ctx.tap.tokens_so_far == stream.count(b'"choices"')
    assert ctx.tap.usage() == Usage(30, 2)


async def test_a_count_in_the_last_event_of_the_answer_is_read() -> None:
    """Although such events are only counted: the last of them is looked at, where it stands."""
    last = WORDS[1].replace(b'"choices"', COUNT[19:-3] + b',"choices"')
    ctx = asking()

    wire = await written(UsageMiddleware(Flowing([*[WORDS[1]] * 100, last, WORDS[-1]])), ctx)

    assert wire.pieces[-3:] == [last, WORDS[-1], b""]
    assert ctx.tap is not None
    assert ctx.tap.usage() == Usage(30, 2)


async def test_a_refusal_that_is_written_at_once_is_held_back() -> None:
    """The client gets what the engine says without the option."""
    engine = Flowing(REFUSED.chunks, status=400, headers=JSON, without=Engine(WORDS))

    wire = await written(UsageMiddleware(engine))

    assert engine.asked == [b"with", b"without"]
    assert wire.status == 200
    assert b"".join(wire.pieces) == b"".join(WORDS)


async def test_a_long_refusal_is_not_gathered_without_end() -> None:
    """What is too long to be one goes out as it came."""
    chunks = [b"x" * 40_000] * 4

    wire = await written(UsageMiddleware(Flowing(chunks, status=400, headers=JSON)))

    assert wire.status == 400
    assert b"".join(wire.pieces) == b"".join(chunks)
    assert wire.waits == 1


async def test_a_refusal_is_forgotten_after_a_while() -> None:
    """The engine may be another one by then."""
    engine = Engine(REFUSED.chunks, status=400, headers=JSON, without=Engine(WORDS))
    layer = UsageMiddleware(engine, refusals=Refusals(forget_after=0))

    await through(layer)
    await through(layer)

    assert engine.asked == [WITH_OPTION, BODY] * 2


async def test_an_engine_that_refuses_the_rest_as_well_is_not_remembered() -> None:
    """What it objects to is the caller's, who gets its second answer."""
    engine = Engine(REFUSED.chunks, status=400, headers=JSON)
    layer = UsageMiddleware(engine)

    _, seen = await through(layer)
    await through(layer)

    assert engine.asked == [WITH_OPTION, BODY] * 2
    assert seen.status == 400
    assert seen.body == b"".join(REFUSED.chunks)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        pytest.param(400, b'{"message":"the prompt is too long"}', id="another_reason"),
        pytest.param(500, b'{"message":"stream_options"}', id="a_failure"),
        pytest.param(400, b"stream_options" + b"x" * LONGEST_REFUSAL, id="too_long_to_be_kept"),
    ],
)
async def test_any_other_refusal_is_the_callers(status: int, said: bytes) -> None:
    """It is passed on as it came, and nobody is asked twice."""
    engine = Engine([said[:10], said[10:]], status=status, headers=JSON)

    _, seen = await through(UsageMiddleware(engine))

    assert engine.asked == [WITH_OPTION]
    assert seen.status == status
    assert seen.body == said
    assert seen.complete


async def test_a_refusal_that_breaks_off_is_a_failure() -> None:
    """Nothing was sent, so the caller is told by an error of ours."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": JSON})
        await send({"type": "http.response.body", "body": b"stream_options", "more_body": True})
        raise UpstreamBroken("gpu1 broke off.")

    _, seen = await through(UsageMiddleware(app))

    assert isinstance(seen.raised, UpstreamBroken)
    assert seen.status is None


async def test_a_refusal_that_is_never_finished_is_sent_as_far_as_it_came() -> None:
    """An app that returns too early is not repaired here."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": JSON})
        await send({"type": "http.response.body", "body": b"stream_options", "more_body": True})

    _, seen = await through(UsageMiddleware(app))

    assert (seen.status, seen.body, seen.complete) == (400, b"stream_options", False)


async def test_a_stream_that_breaks_keeps_half_an_event_back() -> None:
    """The error event that follows stands on a line of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send(
            {"type": "http.response.body", "body": WORDS[0] + b'data: {"i', "more_body": True}
        )
        raise UpstreamBroken("gpu1 broke off.")

    _, seen = await through(UsageMiddleware(app))

    assert isinstance(seen.raised, UpstreamBroken)
    assert seen.body == WORDS[0]


async def test_one_tap_is_enough() -> None:
    """Two layers of the same app, each with what it needs around it, share the one that is set."""
    engine = Engine([*WORDS[:-1], COUNT, WORDS[-1]])
    inner = UsageMiddleware(engine)
    taps: list[object] = []

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        taps.append(get_context(scope).tap)
        await inner(scope, receive, send)

    ctx, seen = await through(UsageMiddleware(between))

    assert engine.asked == [WITH_OPTION]
    assert seen.body == b"".join(WORDS)
    assert taps == [ctx.tap]


async def test_requests_do_not_share_a_tap() -> None:
    """The layer keeps nothing of a request."""
    layer = UsageMiddleware(Engine([*WORDS[:-1], COUNT, WORDS[-1]]))

    done = await asyncio.gather(*(through(layer) for _ in range(20)))

    assert len({id(ctx.tap) for ctx, _ in done}) == 20
    assert all(seen.body == b"".join(WORDS) for _, seen in done)
