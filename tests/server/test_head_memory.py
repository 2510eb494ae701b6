"""A head that was here before is read as it was then, and nothing else is taken for it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.server.bounds import Bounds
from llmproxy.server.head_memory import LONGEST, HeadMemory
from llmproxy.server.head_rules import Head
from llmproxy.server.request_reader import RequestReader
from llmproxy.types import ASGIApp, Header, Receive, Scope, Send
from tests.server.apps import body, read_body, start
from tests.support.client import raw_client
from tests.support.rig import proxied, served_here
from tests.support.upstream import Request, json_answer, scripted

HEAD = (
    b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: a.test\r\nX-A: b\r\n"
    b"Content-Length: %d\r\nAuthorization: Bearer k\r\n\r\n"
)


PUT = (
    *(b"", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"0", b"9" * 20, b"-1", b"+", b"\0", b"_"),
    *(b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b"x", b"\xff", b"HTTP"),
    *(b"\r\n\r\n", b", 3", b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
)


@dataclass
class Incoming:
    """What a reader has made of one request."""

    head: tuple[object, ...]
    body: bytes = b""
    body_complete: bool = False
    keep_alive: bool = True

    def feed(self, body: bytes) -> None:
        self.body += body

    def end_body(self) -> None:
        self.body_complete = True


@dataclass
class Owner:
    """A connection that only listens."""

    requests: list[Incoming] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)

    def begin(self, head: Head, method: bytes, memory: HeadMemory | None = None) -> Incoming:
        self.requests.append(Incoming((*head, method)))
        self.known.append(memory is not None)
        return self.requests[-1]


class Reading:
    """A reader, fed as a connection feeds it."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.reader = RequestReader(self.owner, Bounds())
        self.refused: str | None = None

    def feed(self, data: bytes) -> None:
        if self.refused is None and data:
            requests = self.owner.requests
            if not self.reader.in_head and (not requests or requests[-1].body_complete):
                self.reader.begin_head()
            refusal = self.reader.feed(data)
            self.refused = refusal.message if refusal is not None else None

    def seen(self) -> tuple[object, ...]:
        """All that the last request was taken for."""
        last = self.owner.requests[-1] if self.owner.requests else None
        return (len(self.owner.requests), last, self.refused, self.reader.more_behind)


def reading(*before: bytes) -> Reading:
    """Return a reader that has read these requests."""
    fresh = Reading()
    for each in before:
        fresh.feed(each)
    return fresh


def request(size: int, head: bytes = HEAD) -> bytes:
    return head % size + b"x" * size


def seen_anew(data: bytes, cuts: list[int]) -> tuple[object, ...]:
    """What a reader without a memory makes of a third request."""
    anew = reading(request(3), request(3))
    anew.reader._memory = None
    feed_in_pieces(anew, data, cuts)
    return anew.seen()


def feed_in_pieces(to: Reading, data: bytes, cuts: list[int]) -> None:
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        to.feed(data[at:cut])
        at = cut


def test_a_head_is_known_from_the_third_time_on() -> None:
    """The first is not remembered: most streams are alone on their connection."""
    reader = reading(request(3), request(3), request(30), request(0), request(7))

    assert reader.owner.known == [False, False, True, True, True]
    assert [each.body for each in reader.owner.requests] == [
        b"x" * size for size in (3, 3, 30, 0, 7)
    ]
    assert all(each.body_complete for each in reader.owner.requests)


@given(size=st.integers(0, 2000), cuts=st.lists(st.integers(0, 4000), max_size=4))
@example(size=0, cuts=[])
def test_it_is_read_as_if_for_the_first_time(size: int, cuts: list[int]) -> None:
    """Whatever the length of its body and however it is cut."""
    reader = reading(request(3), request(3))
    feed_in_pieces(reader, request(size), cuts)

    assert reader.seen() == seen_anew(request(size), cuts)


@settings(max_examples=500)
@given(
    at=st.integers(0, len(HEAD) + 20),
    removed=st.integers(0, 6),
    put=st.sampled_from(PUT),
)
@example(at=HEAD.index(b"%d"), removed=1, put=b"0")
@example(at=HEAD.index(b"%d"), removed=1, put=b"9" * 18)
@example(at=HEAD.index(b"%d"), removed=1, put=b"0" * 19)
@example(at=HEAD.index(b"%d"), removed=1, put=b"")
@example(at=HEAD.index(b"%d") + 1, removed=1, put=b"")
@example(at=len(HEAD) + 1, removed=0, put=b"GET / HTTP/1.1\r\n\r\n")
def test_what_is_not_quite_it_is_judged_like_any_other(at: int, removed: int, put: bytes) -> None:
    """A near miss anywhere: refused or served exactly as by a reader that knows nothing."""
    data = request(3)
    near = data[:at] + put + data[at + removed :]
    reader = reading(request(3), request(3))
    reader.feed(near)

    assert reader.seen() == seen_anew(near, [])


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HEAD.replace(b"X-A", b"Expect: 100-continue\r\nX-A"), id="expects"),
        pytest.param(HEAD.replace(b"X-A", b"Upgrade: h2c\r\nX-A"), id="upgrade"),
        pytest.param(HEAD.replace(b"Length: ", b"Length:"), id="length_without_blank"),
        pytest.param(HEAD.replace(b"X-A: b", b"X-A: " + b"b" * LONGEST), id="long"),
    ],
)
def test_what_is_not_remembered(head: bytes) -> None:
    """Whatever the parser does more with than to read it, and what would take much memory."""
    reader = reading(request(3, head), request(3, head), request(3, head))

    assert not any(reader.owner.known)
    assert len(reader.owner.requests) == 3


def test_what_came_in_pieces_is_not_remembered() -> None:
    """Of those not every byte may be known any more when the head is complete."""
    reader = reading(request(3))
    for piece in (request(3)[:50], request(3)[50:], request(3)):
        reader.feed(piece)

    assert reader.owner.known == [False, False, False]


def test_another_head_takes_the_place_of_the_one_before() -> None:
    """One is kept, not each: a connection could hold as many as it likes otherwise."""
    other = HEAD.replace(b"X-A: b", b"X-A: c")
    reader = reading(request(3), request(3), request(3, other), request(3, other), request(3))

    assert reader.owner.known == [False, False, False, True, False]


@pytest.mark.parametrize("before", [b"POST / HTTP/1.1\r\nX: ", b"\r\n", b"P", b"X"])
def test_a_known_head_begins_a_request_or_is_none(before: bytes) -> None:
    """In the middle of another head it is a part of that one."""
    reader = reading(request(3), request(3), before, request(3))
    anew = reading(request(3), request(3))
    anew.reader._memory = None
    anew.feed(before)
    anew.feed(request(3))

    assert reader.seen() == anew.seen()


async def test_what_is_behind_a_known_request_is_not_a_request() -> None:
    """As behind any other: the connection ends with the answer."""
    answers = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answers
        if scope["type"] == "http":
            await read_body(receive)
            answers += 1
            await send(start(200, (b"content-length", b"0")))
            await send(body())

    async with served_here(app, bounds=Bounds()) as port, raw_client(port=port) as client:
        for _ in range(2):
            client.send(request(3))
            await client.answer()
        client.send(request(3) + request(4))
        await client.answer()
        await client.closed()

    assert answers == 3


def told(request: Request) -> list[Header]:
    """Return what an engine was told, but for what is new in each request."""
    new = (b"x-request-id", b"content-length")
    return [header for header in request.headers if header[0] not in new]


async def test_a_repeated_head_goes_on_as_it_did() -> None:
    """To the byte, but for what is new in each request."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        for size in (2, 2, 2, 4, 2):
            client.send(HEAD % size + b"{" + b" " * (size - 2) + b"}")
            assert (await client.answer()).status == 200

    assert [told(each) for each in engine.requests] == [told(engine.requests[0])] * 5
    assert len({each.header(b"x-request-id") for each in engine.requests}) == 5
    assert [each.header(b"content-length") for each in engine.requests] == [
        b"2", b"2", b"2", b"4", b"2"
    ]  # fmt: skip


async def test_what_was_noted_of_one_head_is_not_told_of_another() -> None:
    """Nor what was told to one engine to another: their names differ, and their credentials."""
    other = HEAD.replace(b"X-A: b", b"X-A: c")
    async with (
        scripted(json_answer({})) as one,
        scripted(json_answer({})) as two,
        proxied(f"one={one.url}", f"two={two.url}") as proxy,
        proxy.client() as client,
    ):
        for head in [HEAD] * 6 + [other] * 6 + [HEAD] * 6:
            client.send(head % 2 + b"{}")
            assert (await client.answer()).status == 200

    for engine in (one, two):
        assert [each.header(b"x-a") for each in engine.requests] == [b"b"] * 3 + [b"c"] * 3 + [
            b"b"
        ] * 3
        assert {each.header(b"host") for each in engine.requests} == {
            engine.upstream.authority.encode()
        }


class Changing:
    """A layer that changes the headers where they are, each time in another way."""

    count = 0

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            Changing.count += 1
            if Changing.count % 2:
                scope["headers"].append((b"x-count", b"%d" % Changing.count))
            else:
                scope["headers"][2:3] = [(b"x-count", b"%d" % Changing.count)]
        await self.app(scope, receive, send)


async def test_a_layer_may_change_the_headers() -> None:
    """It finds the client's own each time, and the engine gets what the layer has made of them."""
    Changing.count = 0
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, middleware=f"{__name__}:Changing") as proxy,
        proxy.client() as client,
    ):
        for _ in range(6):
            client.send(HEAD % 2 + b"{}")
            assert (await client.answer()).status == 200

    assert [each.header(b"x-count") for each in engine.requests] == [
        b"%d" % number for number in range(1, 7)
    ]
