"""What one read brings from the engine is one write to the client: the same bytes, at once."""

import asyncio
import itertools

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from llmproxy.application import LLMProxy
from llmproxy.settings import Settings
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.rig import UNROUTED, proxied, served_here
from tests.support.streams import CHAT, KNOWN, NDJSON, OTHER, Dialect
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PeerLeft

STREAM = request_bytes(body=b'{"stream":true}')


class Stepwise:
    """An engine that sends the next chunk when the client has got the one before."""

    def __init__(self, chunks: list[bytes], content_type: bytes = b"text/event-stream") -> None:
        self.chunks = chunks
        self.content_type = content_type
        self.got = asyncio.Semaphore(0)

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin(content_type=self.content_type)
        for chunk in self.chunks:
            exchange.chunk(chunk)
            await self.got.acquire()
        exchange.end()

    async def received_by(self, client: RawClient) -> list[bytes]:
        """Return the frames as the client got them."""
        await client.head()
        frames = []
        async for frame in client.chunks():
            frames.append(frame)
            self.got.release()
        return frames


FINISH = b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
FRAMINGS = {
    "lf": [b"data: 1\n\n", b"data: 2\n\n"],
    "crlf": [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"],
    "cr": [b"data: 1\r\r", b"data: 2\r\r"],
    "mixed": [b"data: 1\r\n\n", b"data: 2\n\r\n", b"\r\n"],
    "comments": [b": ping\n\n", b":\n", b"data: 1\n\n", b": OPENROUTER PROCESSING\n\n"],
    "ids_and_retry": [b"id: 7\nretry: 3000\nevent: x\ndata: 1\n\n"],
    "no_space": [b"data:1\n\n", b"data\n\n"],
    "several_lines": [b"data: 1\ndata: 2\n\n"],
    "several_events_in_one": [b"data: 1\n\ndata: 2\n\ndata: 3\n\n"],
    "bom": [b"\xef\xbb\xbfdata: 1\n\n"],
    "one_event_in_pieces": [b"da", b"ta: ", b'{"a":', b"1}", b"\n", b"\n"],
    "split_utf8": ["data: 😀\n\n".encode()[:8], "data: 😀\n\n".encode()[8:]],
    "byte_by_byte": [bytes([byte]) for byte in "data: é\r\n\r\n".encode()],
    "odd_spaces_in_text": ["data: a\u2028b\u0085c\n\n".encode()],
    "malformed_json": [b"data: {not json\n\n", b"\x00\xff\xfe\n\n"],
    "control_characters": [b"data: \x1b[31m\r\n0\r\n\r\n\n\n"],
}


@pytest.mark.parametrize("chunks", FRAMINGS.values(), ids=FRAMINGS)
async def test_each_write_of_the_engine_is_one_write_to_the_client(chunks: list[bytes]) -> None:
    """Whatever the framing: not gathered, not cut, not held back, not touched."""
    engine_says = Stepwise([*chunks, FINISH])

    async with (
        scripted(engine_says) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(STREAM)
        frames = await engine_says.received_by(client)

    assert frames == [*chunks, FINISH]


@pytest.mark.parametrize("dialect", [*KNOWN, OTHER], ids=lambda dialect: dialect.name)
async def test_every_protocol_streams_chunk_by_chunk(dialect: Dialect) -> None:
    """Messages, responses, NDJSON and what we know nothing of stream like chat."""
    chunks = [*dialect.events, *dialect.terminal]
    engine_says = Stepwise(chunks, dialect.content_type)

    async with (
        scripted(engine_says) as engine,
        proxied(f"{dialect.preset}://127.0.0.1:{engine.address[1]}") as proxy,
    ):
        async with proxy.client() as client:
            client.send(dialect.request)
            frames = await engine_says.received_by(client)
        line = await proxy.log.line()

    assert frames == chunks
    assert line["outcome"] == "completed"


@pytest.mark.parametrize("kind", [b"application/json", b"audio/mpeg", b"text/plain"])
async def test_what_is_no_event_stream_streams_too(kind: bytes) -> None:
    """Speech is heard while it is made."""
    chunks = [b"\xff\xfb", b"\x90" * 700, b"{"]
    engine_says = Stepwise(chunks, kind)

    async with (
        scripted(engine_says) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(b"/v1/audio/speech"))
        frames = await engine_says.received_by(client)

    assert frames == chunks


def recut(stream: bytes, sizes: "itertools.cycle[int]") -> list[bytes]:
    pieces = []
    while stream:
        size = next(sizes)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64, 1000])
async def test_a_stream_cut_anywhere_comes_out_the_same(size: int) -> None:
    """Inside characters, inside line ends, inside the last word: the end is still seen."""
    stream = "".join(
        f'data: {{"choices":[{{"delta":{{"content":"é{n}😀"}}}}]}}\r\n\r\n' for n in range(5)
    ).encode()
    stream += b'data: {"choices":[{"finish_reason":"stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for piece in recut(stream, itertools.cycle([size])):
            exchange.chunk(piece)
            await asyncio.sleep(0)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer, complete = await proxy.asked(STREAM)

    assert answer.body == stream
    assert complete


async def test_an_event_of_16_mib_passes() -> None:
    """Nothing is gathered until an event is whole; nothing of it is kept."""
    event = b'data: {"b64_json":"' + b"A" * (16 * 1024 * 1024) + b'"}\n\n'

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(event)
        exchange.chunk(FINISH)
        exchange.end()

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.keep_reads = False
            client.send(STREAM)
            await client.head()
            size, whole = 0, True
            async for frame in client.chunks():
                whole = whole and frame in event + FINISH
                size += len(frame)
        line = await proxy.log.line()

    assert size == len(event) + len(FINISH)
    assert whole
    assert client.complete
    assert line["bytes"] == size


async def test_the_head_of_a_stream_keeps_everybody_from_gathering_it() -> None:
    """nginx does not buffer it, caches do not keep it, nobody on the way recodes it."""
    async with (
        scripted(Stepwise([])) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(OTHER.path))
        head = await client.head()

    assert head.header(b"content-type") == b"text/event-stream"
    assert head.header(b"x-accel-buffering") == b"no"
    assert head.header(b"cache-control") == b"no-cache, no-transform"
    assert head.header(b"content-length") is None
    assert head.header(b"content-encoding") is None


async def test_an_engines_own_word_on_caching_stays() -> None:
    """It is not said twice."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        )

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(OTHER.path))

    assert answer.header(b"cache-control") == b"no-store"
    assert answer.header(b"x-accel-buffering") == b"no"


async def test_a_counted_stream_is_counted_no_longer() -> None:
    """A comment or an error event would make it longer than its length says."""
    half = CHAT.events[0]
    commented = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
            % (len(CHAT.whole), half)
        )
        await commented.wait()
        exchange.reset()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=0.02) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        head = await client.head()
        body = b""
        with pytest.raises(PeerLeft):
            async for frame in client.chunks():
                body += frame
                if b": keep-alive" in body:
                    commented.set()

    assert head.header(b"content-length") is None
    assert body.startswith(half + b": keep-alive\n\n")
    assert b'"code":"upstream_error"' in body


async def test_a_compressed_stream_is_not_written_into() -> None:
    """An engine that compresses although asked not to gets it passed on as it is, to its end."""
    squeezed = b"\x1f\x8b\x08\x00" + bytes(range(200))
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await asyncio.sleep(0.1)
        exchange.chunk(squeezed)
        await go_on.wait()
        if exchange.number == 1:
            exchange.end()
        else:
            exchange.reset()

    async with (
        scripted(script) as engine,
        proxied(engine.upstream, keepalive_comments=0.02) as proxy,
    ):
        go_on.set()
        whole, complete = await proxy.asked(CHAT.request)
        broken, broken_complete = await proxy.asked(CHAT.request)

    assert whole.body == broken.body == squeezed
    assert whole.header(b"content-encoding") == b"gzip"
    assert complete
    assert not broken_complete


@pytest.mark.parametrize("dialect", [CHAT, NDJSON], ids=lambda dialect: dialect.name)
async def test_a_hosts_gzip_does_not_gather_a_stream(dialect: Dialect) -> None:
    """Behind Starlette's GZipMiddleware each chunk still arrives when it was sent, unpacked."""
    chunks = [*dialect.events, *dialect.terminal]
    engine_says = Stepwise(chunks, dialect.content_type)
    accept = dialect.request.replace(b"\r\n\r\n", b"\r\naccept-encoding: gzip\r\n\r\n", 1)
    async with scripted(engine_says) as engine:
        upstream = f"{dialect.preset}://127.0.0.1:{engine.address[1]}"
        app = LLMProxy(Settings(upstreams=upstream, middleware=UNROUTED))
        host = Starlette(
            routes=[Mount("/llm", app)], middleware=[Middleware(GZipMiddleware, minimum_size=1)]
        )
        async with served_here(host, lifespan="off") as port, raw_client(port=port) as client:
            client.send(accept.replace(b"POST /", b"POST /llm/", 1))
            frames = await engine_says.received_by(client)
        await app.aclose()

    assert frames == chunks
