"""What a request held is free at its end, and does not wait for the garbage collector.

A body may have 32 MiB, and the collector comes by after 20,000 objects: circles that hold one
would add up to gigabytes.
"""

import gc
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress

import pytest

from llmproxy.cleanup import forget_origin
from llmproxy.context import RequestContext
from llmproxy.server.exchange import Exchange as ServedExchange
from llmproxy.server.protocol import GuardedProtocol
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.connection import Connection
from tests.server.apps import GET
from tests.support.calls import eventually
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.ports import free_port
from tests.support.rig import proxied
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PeerLeft

Go = Callable[[RawClient], Awaitable[None]]

STREAMS = 3
KINDS = (RequestContext, ServedExchange, Http1Call)
POST = request_bytes(body=b'{"model":"m"}')
UNKNOWN = request_bytes(b"/nowhere", method=b"GET", body=None)
TOO_LARGE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n"
UPLOAD_HEAD = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
UPLOAD = UPLOAD_HEAD + b"x" * 600_000  # comes in several reads
MALFORMED_UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz"


Kept = Callable[[], list[str]]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What is there of these kinds, and was not before; without a collector that comes by."""
    yield from newcomers(KINDS)


@pytest.fixture
def connections() -> Iterator[Kept]:
    """The connections of clients, and those to engines that can carry nothing more."""
    yield from newcomers((GuardedProtocol, Connection))


def newcomers(kinds: tuple[type, ...]) -> Iterator[Kept]:
    gc.collect()
    before = [each for each in gc.get_objects() if isinstance(each, kinds)]
    known = {id(each) for each in before}

    def new() -> list[str]:
        found = (each for each in gc.get_objects() if isinstance(each, kinds))
        return [type(each).__name__ for each in found if id(each) not in known and not idle(each)]

    gc.disable()
    yield new
    gc.enable()


def idle(each: object) -> bool:
    """Whether it waits for another call."""
    return isinstance(each, Connection) and not each.closed


async def engine(exchange: Exchange) -> None:
    """Answer; a stream is begun and does not go on."""
    request = await exchange.request()
    if request.method == b"GET":
        exchange.json({})
    elif b"cut" in request.body:
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        exchange.reset()
    elif b"nonsense" in request.body:
        exchange.send(b"This is no answer.\r\n\r\n")
    elif b"silence" in request.body:
        await exchange.closed()
    elif b"stream" in request.body:
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await exchange.closed()
    else:
        exchange.json({})


async def leaves(client: RawClient) -> None:
    client.send(CHAT.request)
    await client.head()
    client.close()


async def is_cut(client: RawClient) -> None:
    client.send(request_bytes(body=b'{"stream":true,"model":"cut"}'))
    with suppress(PeerLeft):
        await client.answer()


async def leaves_in_its_body(client: RawClient) -> None:
    client.send(POST[:-5])
    await client.sent()
    client.close()


async def leaves_in_its_upload(client: RawClient) -> None:
    client.send(UPLOAD[:-5])
    await client.sent()
    client.close()


async def gets_nonsense(client: RawClient) -> None:
    client.send(request_bytes(body=b'{"model":"nonsense"}'))
    await client.answer()


async def uploads(client: RawClient) -> None:
    client.send(UPLOAD)
    await client.answer()


async def is_refused_in_its_upload(client: RawClient) -> None:
    client.send(MALFORMED_UPLOAD)
    await client.rest()


async def asks(client: RawClient) -> None:
    client.send(POST)
    await client.answer()


async def is_refused(client: RawClient) -> None:
    client.send(UNKNOWN)
    await client.answer(to=b"GET")


async def is_too_large(client: RawClient) -> None:
    client.send(TOO_LARGE)
    await client.answer()


async def is_malformed(client: RawClient) -> None:
    client.send(GET.replace(b"host:", b"host: x\r\nhost:"))
    await client.answer(to=b"GET")


WAYS = pytest.mark.parametrize(
    "go",
    [
        asks, uploads, is_refused, is_too_large, is_malformed, is_refused_in_its_upload,
        is_cut, gets_nonsense, leaves, leaves_in_its_body, leaves_in_its_upload,
    ],
    ids=lambda go: go.__name__,
)  # fmt: skip


@WAYS
async def test_nothing_is_left_of_a_client_that_has_gone(
    go: Go, kept: Kept, connections: Kept
) -> None:
    """However its last request ended."""
    async with scripted(engine) as server, proxied(server.upstream) as proxy:
        async with proxy.client() as client:
            await go(client)
        await eventually(lambda: not kept() and not connections(), "everything was let go")


async def test_nothing_is_left_of_a_client_that_did_not_wait_for_its_answer(
    kept: Kept, connections: Kept
) -> None:
    """A queue of them may leave at once."""
    async with scripted(engine) as server, proxied(server.upstream) as proxy:
        async with proxy.client() as client:
            client.send(request_bytes(body=b'{"model":"silence"}'))
            await eventually(lambda: bool(server.requests), "the engine was asked")
        await eventually(lambda: not kept() and not connections(), "everything was let go")


@pytest.mark.parametrize("go", [asks, is_refused], ids=lambda f: f.__name__)
async def test_an_idle_connection_holds_nothing_of_its_last_request(go: Go, kept: Kept) -> None:
    """Ten thousand of them would hold ten thousand bodies."""
    async with (
        scripted(engine) as server,
        proxied(server.upstream) as proxy,
        raw_client(port=proxy.port) as client,
    ):
        await go(client)
        await proxy.log.line()
        await eventually(lambda: not kept(), "its request was let go")
        await asks(client)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", id="answered"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nno field\r\n\r\n", id="refused_by_the_parser"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", id="refused_by_us"),
    ],
)
async def test_nothing_is_left_of_a_connection_that_is_over(
    request_: bytes, connections: Kept
) -> None:
    """A thousand a second come and go, and all wait while the collector comes by for them."""
    async with proxied("http://127.0.0.1:9") as proxy:
        for _ in range(STREAMS):
            async with proxy.client() as client:
                client.send(request_)
                await client.rest()
        await eventually(lambda: not connections(), "nothing is left of them")


def through() -> Counter[str]:
    """The coroutines that have come to their end and are still held."""
    gc.collect()
    coroutines = [each for each in gc.get_objects() if inspect.iscoroutine(each)]
    return Counter(
        each.__qualname__
        for each in coroutines
        if inspect.getcoroutinestate(each) == inspect.CORO_CLOSED
    )


async def test_a_stream_keeps_no_coroutine_that_is_through() -> None:
    """By a name for what was awaited, say: that would be 300 bytes for as long as it lasts."""
    async with (
        scripted(engine) as server,
        proxied(server.upstream) as proxy,
        AsyncExitStack() as stack,
    ):
        before = through()
        for _ in range(STREAMS):
            client = await stack.enter_async_context(proxy.client())
            client.send(CHAT.request)
            await client.head()
            await anext(client.chunks())
        more = through() - before

    assert not {name for name, count in more.items() if count >= STREAMS}


async def test_nothing_is_left_of_who_found_no_server(kept: Kept) -> None:
    """Why there is no connection is held by nobody who is held by it."""
    async with proxied(f"http://127.0.0.1:{free_port()}") as proxy:
        async with proxy.client() as client:
            client.send(POST)
            answer = await client.answer()
        await eventually(lambda: not kept(), "everything was let go")

    assert answer.status == 502


def test_an_error_forgets_where_it_came_from() -> None:
    """Its cause and its context have frames, too."""

    def fail() -> None:
        try:
            raise KeyError("a")
        except KeyError as cause:
            raise ValueError("b") from cause

    with pytest.raises(ValueError, match="b") as caught:
        fail()
    failure = caught.value
    forget_origin(failure)

    assert (failure.__traceback__, failure.__cause__, failure.__context__) == (None, None, None)
