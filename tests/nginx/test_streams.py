"""What comes out of llmproxy reaches the caller at once, and a caller who leaves is noticed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hyperframe.frame import GoAwayFrame

from tests.nginx.clients import CHAT, begin, caller, http2_connection, plain_caller, raw, take
from tests.nginx.front import Certificates, Front, render_public
from tests.nginx.upstream import Call, Upstream

MIB = 1024 * 1024
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(4)]

both_versions = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@asynccontextmanager
async def version(
    front: Front, certificates: Certificates, http2: bool
) -> AsyncIterator[httpx.AsyncClient]:
    """A caller who speaks this version and would not fall back to the other one."""
    context = certificates.client_context(alpn=["h2"] if http2 else ["http/1.1"])
    async with caller(front, context, http2=http2) as client:
        yield client


async def begin_in_step(
    client: httpx.AsyncClient, upstream: Upstream
) -> tuple[Call, httpx.Response, AsyncIterator[bytes]]:
    """Open a stream and let its first event arrive."""
    asking = asyncio.create_task(begin(client))
    call = await upstream.next_call()
    await call.read_body()
    await call.begin_stream()
    # Over HTTP/2 nginx 1.22 sends no head without a body byte behind it.
    await call.send_chunk(EVENTS[0])
    response = await asking
    chunks = response.aiter_raw()
    assert await take(chunks, len(EVENTS[0])) == EVENTS[0]
    return call, response, chunks


async def end_in_step(call: Call, chunks: AsyncIterator[bytes]) -> None:
    """Stream the other events, each sent only after the caller has confirmed the one before."""
    for event in EVENTS[1:]:
        await call.send_chunk(event)
        assert await take(chunks, len(event)) == event
    await call.end_stream()
    assert [chunk async for chunk in chunks] == []


async def stream_in_step(client: httpx.AsyncClient, upstream: Upstream) -> httpx.Response:
    call, response, chunks = await begin_in_step(client, upstream)
    await end_in_step(call, chunks)
    return response


@both_versions
async def test_chunks_arrive_one_by_one(
    public: Front, upstream: Upstream, certificates: Certificates, http2: bool
) -> None:
    """No chunk waits for the next one."""
    async with version(public, certificates, http2) as client:
        response = await stream_in_step(client, upstream)

    assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert response.headers["content-type"] == "text/event-stream"


async def test_the_head_waits_for_no_chunk(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """Over HTTP/1.1 a caller learns the status while the engine still reads the prompt."""
    async with caller(public, trusting) as client:
        asking = asyncio.create_task(begin(client))
        call = await upstream.next_call()
        await call.begin_stream()
        response = await asking
        await response.aclose()

    assert response.status_code == 200


async def test_chunks_arrive_one_by_one_over_the_plain_front(
    plain: Front, upstream: Upstream
) -> None:
    """The plain file streams as well."""
    async with plain_caller(plain) as client:
        await stream_in_step(client, upstream)


async def test_llmproxy_may_listen_on_tcp(root: Path, certificates: Certificates) -> None:
    """A port in place of the socket changes nothing."""
    async with (
        Upstream().listening() as upstream,
        render_public(root, upstream.address, certificates).running() as front,
        caller(front, certificates.client_context()) as client,
    ):
        await stream_in_step(client, upstream)


async def test_an_answer_cannot_switch_buffering_on(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """A model server's X-Accel-Buffering is not nginx' business, and nor is gzip."""
    async with caller(public, trusting) as client:
        asking = asyncio.create_task(begin(client))
        call = await upstream.next_call()
        await call.begin_stream(headers="x-accel-buffering: yes\r\n")
        response = await asking
        chunks = response.aiter_raw()
        await call.send_chunk(EVENTS[0])

        assert await take(chunks, len(EVENTS[0])) == EVENTS[0]
        assert "content-encoding" not in response.headers
        await response.aclose()


async def test_html_is_not_compressed(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """`gzip on` in the http context, Debian's default, does not reach llmproxy's answers."""
    async with caller(public, trusting) as client:
        asking = asyncio.create_task(client.get("/v1/models", headers={"accept-encoding": "gzip"}))
        call = await upstream.next_call()
        page = b"<p>" * 1000
        await call.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 3000\r\n\r\n" + page
        )
        response = await asking

    assert "content-encoding" not in response.headers
    assert response.content == page


@both_versions
async def test_an_upload_is_passed_on_as_it_comes(
    public: Front, upstream: Upstream, certificates: Certificates, http2: bool
) -> None:
    """llmproxy sees the head before the body is there, and each part before the next one."""
    arrived = asyncio.Semaphore(0)

    async def parts() -> AsyncIterator[bytes]:
        for event in EVENTS:
            yield event
            await arrived.acquire()

    async with version(public, certificates, http2) as client:
        asking = asyncio.create_task(client.post("/v1/audio/transcriptions", content=parts()))
        call = await upstream.next_call()
        for event in EVENTS:
            received = b""
            while len(received) < len(event):
                received += await call.read_chunk()
            assert received == event
            arrived.release()
        assert await call.read_chunk() == b""
        await call.answer()
        response = await asking

    assert response.status_code == 200


async def test_an_early_refusal_arrives(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """A caller with a bad key is told so before its upload is through."""
    async with raw(public, trusting) as connection:
        await connection.send(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: llm.example.com\r\n"
            b"Content-Length: 1000000\r\n\r\nfirst"
        )
        call = await upstream.next_call()
        await call.answer(
            b'{"error":{}}', status="401 Unauthorized", headers="connection: close\r\n"
        )
        call.hang_up()
        answer = await connection.answer()

    assert answer.status == 401
    assert answer.body == b'{"error":{}}'


async def stop_reading(client: httpx.AsyncClient, upstream: Upstream) -> None:
    """Take one event of a stream, then nothing; the upstream must not get rid of the rest."""
    call, _, _ = await begin_in_step(client, upstream)

    async def write_all() -> None:
        for _ in range(64):
            await call.send_chunk(b"x" * MIB)

    writing = asyncio.create_task(write_all())
    # Whoever buffers is done with it long before. Who does not never is.
    await asyncio.wait([writing], timeout=1)
    assert not writing.done()
    writing.cancel()


@both_versions
async def test_a_reader_that_stops_makes_llmproxy_stop(
    public: Front, upstream: Upstream, certificates: Certificates, http2: bool
) -> None:
    """nginx does not swallow 64 MiB for it, neither into memory nor onto the disk."""
    async with version(public, certificates, http2) as client:
        await stop_reading(client, upstream)

    assert not [line for line in public.log if "temporary file" in line]


async def test_a_reader_that_stops_makes_llmproxy_stop_behind_the_plain_front(
    plain: Front, upstream: Upstream
) -> None:
    """The same without TLS."""
    async with plain_caller(plain) as client:
        await stop_reading(client, upstream)

    assert not [line for line in plain.log if "temporary file" in line]


@pytest.mark.parametrize("when", ["before_the_answer", "in_the_stream"])
async def test_a_caller_who_hangs_up_is_noticed(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, when: str
) -> None:
    """llmproxy's connection is closed while llmproxy is silent: nothing has to be sent first."""
    async with caller(public, trusting) as client:
        if when == "before_the_answer":
            asking = asyncio.create_task(begin(client))
            call = await upstream.next_call()
            await call.read_body()
            asking.cancel()
        else:
            call, response, _ = await begin_in_step(client, upstream)
            await response.aclose()

        await call.left()


@pytest.mark.parametrize("when", ["before_the_answer", "in_the_stream"])
async def test_a_caller_who_resets_its_stream_is_noticed(
    public: Front, upstream: Upstream, certificates: Certificates, when: str
) -> None:
    """Over HTTP/2 the connection stays, for other streams, and the one call still ends."""
    async with http2_connection(public, certificates.client_context(alpn=["h2"])) as connection:
        await connection.post(CHAT, stream=1)
        call = await upstream.next_call()
        await call.read_body()
        if when == "in_the_stream":
            await call.begin_stream()
            await call.send_chunk(EVENTS[0])
            assert await connection.take(stream=1, count=len(EVENTS[0])) == EVENTS[0]

        await connection.reset(stream=1)
        await call.left()

        await connection.post(CHAT, stream=3)
        again = await upstream.next_call()
        await again.read_body()
        await again.answer(b"still here")
        assert await connection.take(stream=3, count=10) == b"still here"


@both_versions
async def test_a_truncated_answer_does_not_look_complete(
    public: Front, upstream: Upstream, certificates: Certificates, http2: bool
) -> None:
    """When llmproxy ends a stream without the last chunk, the caller's client sees an error."""
    async with version(public, certificates, http2) as client:
        call, _, chunks = await begin_in_step(client, upstream)
        call.hang_up()

        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)


async def test_a_reload_does_not_cut_a_stream(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """The old worker finishes its streams while the new one answers new callers."""
    async with caller(public, trusting) as client:
        call, _, chunks = await begin_in_step(client, upstream)

        await public.reload()
        async with caller(public, trusting) as other, upstream.answering():
            assert (await other.get("/v1/models")).status_code == 200

        await end_in_step(call, chunks)


async def test_a_reload_does_not_cut_an_http2_stream(
    public: Front, upstream: Upstream, certificates: Certificates
) -> None:
    """nginx announces that the connection will end (GOAWAY), and finishes what runs on it."""
    async with http2_connection(public, certificates.client_context(alpn=["h2"])) as connection:
        await connection.post(CHAT, stream=1)
        call = await upstream.next_call()
        await call.read_body()
        await call.begin_stream()
        await call.send_chunk(EVENTS[0])
        assert await connection.take(stream=1, count=len(EVENTS[0])) == EVENTS[0]

        await public.reload()

        for event in EVENTS[1:]:
            await call.send_chunk(event)
            assert await connection.take(stream=1, count=len(event)) == event
        await call.end_stream()
        await connection.ended(stream=1)

    assert any(isinstance(frame, GoAwayFrame) for frame in connection.frames)
