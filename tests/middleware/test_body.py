"""Taking the body out of the request."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llmproxy.context import SCOPE_KEY, RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    InvalidJson,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedEncoding,
)
from llmproxy.middleware.body import LARGE, BodyMiddleware
from llmproxy.protocol.endpoints import CHAT, NATIVE, OTHER
from llmproxy.protocol.inference import read_inference
from llmproxy.protocol.multipart import LOOK_AT
from llmproxy.records import Endpoint, InferenceRequest
from llmproxy.types import EXCHANGE, Header, Message, Receive, Scope, Send
from llmproxy.upload import IncomingUpload
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context
from tests.support.turns import counted_turns

JSON: Header = (b"content-type", b"application/json")
CHUNKED: Header = (b"transfer-encoding", b"chunked")


def length(size: int) -> Header:
    return (b"content-length", b"%d" % size)


async def take(
    body: bytes | Sequence[bytes],
    headers: list[Header],
    *,
    endpoint: Endpoint = CHAT,
    within: float = 5,
    max_upload: int = 200,
    **options: Any,
) -> tuple[RequestContext, Exchange]:
    """Return what the layer has put into the context, and what became of the request."""

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    layer = BodyMiddleware(inside, max_body=100, max_upload=max_upload, within=within)
    ctx = make_context(endpoint=endpoint, body=None, inference=None, fields=dict(headers))
    return ctx, await drive(layer, ctx=ctx, headers=headers, body=body, **options)


async def test_json_is_read_and_understood() -> None:
    """Those further in get the bytes and what they ask for."""
    body = b'{"model":"m","stream":true}'

    ctx, _ = await take(body, [JSON, length(len(body))])

    assert ctx.body == body
    assert ctx.inference == InferenceRequest(model="m", stream=True, prompt_bytes=27)


@pytest.mark.parametrize(("endpoint", "most"), [(CHAT, 5), (NATIVE[b"/api/chat"], None)])
async def test_limits_are_those_of_the_endpoint(endpoint: Endpoint, most: int | None) -> None:
    """Ollama's own chat does not know `max_tokens`, so there it limits nothing."""
    body = b'{"model":"m","max_tokens":5}'

    ctx, _ = await take(body, [JSON, length(len(body))], endpoint=endpoint)

    assert ctx.inference is not None
    assert ctx.inference.max_tokens == most


async def test_a_body_in_one_piece_is_not_copied() -> None:
    """The very bytes that the server handed over go on."""
    body = b'{"model":"m"}'

    ctx, _ = await take(body, [JSON, length(len(body))])

    assert ctx.body is body


async def test_pieces_are_put_together() -> None:
    """However many messages they come in."""
    ctx, _ = await take([b'{"a"', b":1", b"}", b""], [JSON, CHUNKED])

    assert ctx.body == b'{"a":1}'


async def test_a_request_without_a_body_has_an_empty_one() -> None:
    """GET asks for nothing by its body; nothing is read."""
    ctx, seen = await take(b"", [], endpoint=OTHER, method="GET")

    assert ctx.body == b""
    assert ctx.inference == InferenceRequest()
    assert seen.taken == 0


async def test_what_is_too_large_by_its_own_word_is_not_read() -> None:
    """Not a byte of it."""
    _, seen = await take(b"x" * 101, [JSON, length(101)])

    assert isinstance(seen.raised, RequestTooLarge)
    assert seen.taken == 0


async def test_what_turns_out_too_large_is_read_no_further() -> None:
    """The piece that goes over the limit is the last."""
    _, seen = await take([b"x" * 60, b"x" * 60, b"x" * 60], [JSON, CHUNKED])

    assert isinstance(seen.raised, RequestTooLarge)
    assert seen.taken == 2


async def test_compressed_json_is_refused_unread() -> None:
    """It would have to be inflated to be judged."""
    _, seen = await take(b"{}", [JSON, length(2), (b"content-encoding", b"br")])

    assert isinstance(seen.raised, UnsupportedEncoding)
    assert seen.taken == 0


async def test_json_that_is_none_is_refused() -> None:
    """Where only JSON can be asked."""
    _, seen = await take(b"{", [JSON, length(1)])

    assert isinstance(seen.raised, InvalidJson)


async def test_a_body_that_does_not_come_is_given_up() -> None:
    """One clock for all of it."""
    never = asyncio.Event()

    _, seen = await take(
        [b"{", b"}"],
        [JSON, CHUNKED],
        within=0.05,
        body_when=lambda number: never if number == 1 else None,
    )

    assert isinstance(seen.raised, RequestTimeout)


async def test_a_client_that_leaves_in_its_body_has_gone() -> None:
    """Half a request is none."""
    _, seen = await take([b'{"a":', b"1}"], [JSON, CHUNKED], leave_in_body=1)

    assert isinstance(seen.raised, ClientGone)


async def test_what_is_not_json_is_left_to_come_in() -> None:
    """Nothing of it is read before somebody wants it."""
    ctx, seen = await take(
        [b"RIFF", b"data"], [(b"content-type", b"audio/wav"), CHUNKED], endpoint=OTHER
    )

    assert isinstance(ctx.body, IncomingUpload)
    assert ctx.inference == InferenceRequest()
    assert seen.taken == 0


async def test_a_form_is_read_as_far_as_its_model() -> None:
    """And no further."""
    field = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'

    ctx, seen = await take(
        [field, b"--b\r\n...", b"..."],
        [(b"content-type", b"multipart/form-data; boundary=b"), CHUNKED],
        endpoint=OTHER,
    )

    assert ctx.inference == InferenceRequest(model="whisper")
    assert seen.taken == 1


async def test_a_form_is_not_kept_for_the_sake_of_its_model() -> None:
    """Whatever its first field is like: what is looked at is bounded."""
    field = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'

    ctx, seen = await take(
        [field, *[b"x" * 16_384] * 50],
        [(b"content-type", b"multipart/form-data; boundary=b"), CHUNKED],
        endpoint=OTHER,
        max_upload=1 << 30,
    )

    assert ctx.inference == InferenceRequest()
    assert seen.taken <= LOOK_AT // 16_384 + 1


async def test_an_upload_too_large_by_its_own_word_is_refused() -> None:
    """Not a byte of it is read."""
    _, seen = await take(b"", [(b"content-type", b"audio/wav"), length(201)], endpoint=OTHER)

    assert isinstance(seen.raised, RequestTooLarge)
    assert seen.taken == 0


async def test_http_2_says_nothing_of_a_body_and_has_one() -> None:
    """Neither length nor coding stands in its head."""
    ctx, _ = await take(b'{"model":"m"}', [JSON], http_version="2")

    assert ctx.body == b'{"model":"m"}'


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "GET"])
async def test_http_2_may_have_a_body_with_any_method(method: str) -> None:
    """What a caller sends along goes on, as it does over HTTP/1."""
    taken = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        body = get_context(scope).body
        assert isinstance(body, IncomingUpload)
        taken.extend([piece async for piece in body])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    layer = BodyMiddleware(inside, max_body=100, max_upload=200, within=5)
    ctx = make_context(endpoint=OTHER, body=None, inference=None, fields={})
    seen = await drive(layer, ctx=ctx, body=[b"ab", b"cd"], http_version="2", method=method)

    assert seen.status == 200
    assert taken == [b"ab", b"cd"]


@pytest.mark.parametrize("method", ["DELETE", "POST", "GET"])
async def test_http_2_without_a_body_is_no_upload(method: str) -> None:
    """It may be sent again like any other request that has none."""
    ctx, _ = await take(b"", [], endpoint=OTHER, http_version="2", method=method)

    assert ctx.body == b""


@pytest.mark.parametrize(
    "kind", [b"application/json; charset=utf-8", b"APPLICATION/JSON", b"application/vnd.api+json"]
)
async def test_json_has_many_names(kind: bytes) -> None:
    """Parameters and case do not make it something else."""
    ctx, _ = await take(b'{"model":"m"}', [(b"content-type", kind), length(13)], endpoint=OTHER)

    assert ctx.inference == InferenceRequest(model="m", prompt_bytes=13)


class Server:
    """A server of ours, which has all of a body."""

    task: Any = None
    gone = False

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.taken = 0

    def take_body(self) -> bytes | None:
        self.taken += 1
        return self.body

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self.body, "more_body": False}


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_body_that_is_there_is_taken_unless_a_layer_wants_to_see_it(wrapped: bool) -> None:
    """One that wraps `receive` may have changed what it brings."""
    server = Server(b'{"model":"m"}')

    async def receive() -> Message:
        return {**await server.receive(), "body": b'{"model":"theirs"}'}

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for nothing more."""

    async def send(message: Message) -> None:
        """Nothing is answered."""

    ctx = make_context(
        endpoint=CHAT, body=None, inference=None, fields=dict([JSON, length(len(server.body))])
    )
    scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}
    layer = BodyMiddleware(inside, max_body=100, max_upload=100, within=5)
    await layer(scope, receive if wrapped else server.receive, send)

    assert ctx.body == (b'{"model":"theirs"}' if wrapped else server.body)
    assert server.taken == (not wrapped)


async def test_large_bodies_are_not_understood_in_the_same_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop would be held up by all of them together; small ones need not wait for any."""
    turn = 0
    understood: list[tuple[int, int]] = []  # the turn, and the size

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        size = len(scope[SCOPE_KEY].body)
        understood.append((turn, size))

    async def ask(body: bytes) -> None:
        fields = dict([JSON, length(len(body))])
        ctx = make_context(endpoint=CHAT, body=None, inference=None, fields=fields)
        server = Server(body)
        scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}
        await layer(scope, server.receive, nothing)

    async def nothing(message: Message) -> None:
        """Nothing is answered."""

    def understand(body: bytes, *about: Any, **told: Any) -> InferenceRequest:
        at.append(turn)
        return read_inference(body, *about, **told)

    monkeypatch.setattr("llmproxy.middleware.body.read_inference", understand)
    at: list[int] = []
    layer = BodyMiddleware(inside, max_body=2 * LARGE, max_upload=100, within=5)
    small = b'{"model":"m"}'
    large = b'{"model":"m","prompt":"%b"}' % (b"x" * LARGE)
    counting = asyncio.create_task(turns())
    await asyncio.gather(*map(ask, [large, large, small, large, small]))
    counting.cancel()

    assert [size for _, size in understood[:2]] == [len(small)] * 2
    passed_on = [turn for turn, size in understood if size == len(large)]
    assert len(set(at[2:])) == len(set(passed_on)) == 3
    assert set(at[2:]).isdisjoint(passed_on), "what is done with one is work for another turn"


LARGE_TEXT = b'{"model":"m","prompt":"%b"}' % ("日本語".encode() * LARGE)


async def test_that_a_large_body_is_text_is_seen_in_steps() -> None:
    """It takes as long as everything else that is to be understood of it."""

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is answered."""

    async def nothing(message: Message) -> None:
        """Nothing is answered."""

    async def turns_for(body: bytes) -> int:
        fields = dict([JSON, length(len(body))])
        ctx = make_context(endpoint=CHAT, body=None, inference=None, fields=fields)
        server = Server(body)
        scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}
        async with counted_turns() as turns:
            await layer(scope, server.receive, nothing)
        assert ctx.inference == InferenceRequest(model="m", prompt_bytes=len(body))
        return turns.count

    layer = BodyMiddleware(inside, max_body=len(LARGE_TEXT), max_upload=100, within=5)
    plain = LARGE_TEXT.decode().encode("ascii", "replace").ljust(len(LARGE_TEXT))
    more = await turns_for(LARGE_TEXT) - await turns_for(plain)

    assert more >= len(LARGE_TEXT) // (2 * LARGE)


@pytest.mark.parametrize("at", [LARGE // 2, LARGE, 5 * LARGE, len(LARGE_TEXT) - 3])
async def test_a_large_body_that_is_no_text_is_refused(at: int) -> None:
    """Wherever it ceases to be one; a body that is only passed on is the engine's to judge."""
    body = LARGE_TEXT[:at] + b"\xff" + LARGE_TEXT[at + 1 :]
    fields = dict([JSON, length(len(body))])
    reached = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope[SCOPE_KEY].body)

    layer = BodyMiddleware(inside, max_body=len(body), max_upload=100, within=5)
    for endpoint in (CHAT, OTHER):
        ctx = make_context(endpoint=endpoint, body=None, inference=None, fields=fields)
        seen = await drive(layer, ctx=ctx, headers=list(fields.items()), body=body)
        assert isinstance(seen.raised, InvalidJson) == (endpoint is CHAT)

    assert reached == [body]


@pytest.mark.parametrize(("endpoint", "most"), [(CHAT, 5), (NATIVE[b"/api/chat"], None)])
async def test_the_limits_of_a_large_body_are_those_of_the_endpoint(
    endpoint: Endpoint, most: int | None
) -> None:
    """As those of a small one."""
    body = b'{"model":"m","max_tokens":5,"x":"%b"}' % (b"x" * LARGE)
    fields = dict([JSON, length(len(body))])
    ctx = make_context(endpoint=endpoint, body=None, inference=None, fields=fields)

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is answered."""

    layer = BodyMiddleware(inside, max_body=2 * LARGE, max_upload=100, within=5)
    await drive(layer, ctx=ctx, headers=list(fields.items()), body=body)

    assert ctx.inference is not None
    assert ctx.inference.max_tokens == most


def test_large_bodies_have_their_turns_in_a_second_event_loop_too() -> None:
    """Waiting for a turn ties a lock to its loop, and a host may have one after the other."""
    body = b'{"model":"m","prompt":"%b"}' % (b"x" * LARGE)
    reached = 0

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached += 1

    async def nothing(message: Message) -> None:
        """Nothing is answered."""

    async def ask() -> None:
        fields = dict([JSON, length(len(body))])
        ctx = make_context(endpoint=CHAT, body=None, inference=None, fields=fields)
        server = Server(body)
        scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}
        await layer(scope, server.receive, nothing)

    async def three() -> None:
        await asyncio.gather(ask(), ask(), ask())

    layer = BodyMiddleware(inside, max_body=2 * LARGE, max_upload=100, within=5)
    asyncio.run(three())
    asyncio.run(three())

    assert reached == 6


async def test_a_large_body_whose_client_leaves_does_not_hold_up_the_next() -> None:
    """The turn is given back however it ends."""
    body = b'{"model":"m","prompt":"%b"}' % (b"x" * LARGE)
    reached = asyncio.Event()

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()

    async def nothing(message: Message) -> None:
        """Nothing is answered."""

    layer = BodyMiddleware(inside, max_body=2 * LARGE, max_upload=100, within=5)

    def asking() -> asyncio.Task[None]:
        fields = dict([JSON, length(len(body))])
        ctx = make_context(endpoint=CHAT, body=None, inference=None, fields=fields)
        server = Server(body)
        scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}
        return asyncio.create_task(layer(scope, server.receive, nothing))

    leaving = [asking(), asking()]
    await asyncio.sleep(0)
    for each in leaving:
        each.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    await asyncio.wait_for(asking(), 5)

    assert reached.is_set()


async def test_a_body_that_is_there_and_too_large_is_not_taken() -> None:
    """The bound holds before the bytes are looked at."""
    server = Server(b"x" * 101)
    ctx = make_context(endpoint=CHAT, body=None, fields=dict([JSON, length(101)]))
    scope = {"type": "http", "method": "POST", SCOPE_KEY: ctx, "extensions": {EXCHANGE: server}}

    async def nobody(*_: object) -> None:
        raise AssertionError("nobody is asked")

    layer = BodyMiddleware(nobody, max_body=100, max_upload=100, within=5)
    with pytest.raises(RequestTooLarge):
        await layer(scope, server.receive, nobody)
    assert server.taken == 0
