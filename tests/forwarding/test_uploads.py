"""Bodies that are not JSON go on while they come in."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from tests.support.client import RawClient, request_bytes
from tests.support.rig import Connection, proxied
from tests.support.upstream import Exchange, in_turn, json_answer, scripted

ECHO = json_answer({"ok": True})
FORM = b"multipart/form-data; boundary=frontier"
PATH = b"/v1/audio/transcriptions"


def part(name: bytes, value: bytes, extra: bytes = b"") -> bytes:
    return b'--frontier\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
        name,
        extra,
        value,
    )


FILE_HEAD = b'--frontier\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
MODEL = part(b"model", b"whisper-1")
END = b"\r\n--frontier--\r\n"


def chunked_head(path: bytes = PATH, content_type: bytes = FORM) -> bytes:
    return request_bytes(
        path,
        headers=[(b"content-type", content_type), (b"transfer-encoding", b"chunked")],
        body=b"",
    )


def counted(body: bytes, content_type: bytes = FORM) -> bytes:
    return request_bytes(PATH, headers=[(b"content-type", content_type)], body=body)


def say(client: RawClient, piece: bytes) -> None:
    client.send(b"%x\r\n%b\r\n" % (len(piece), piece))


async def test_each_piece_goes_on_as_soon_as_it_is_there() -> None:
    """The engine has the first part of a file before the caller has sent the second."""
    arrived = asyncio.Queue[bytes]()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        async for piece in exchange.pieces():
            arrived.put_nowait(piece)
        exchange.json({"text": "hello"})

    pieces = [MODEL + FILE_HEAD, b"RIFF", b"\0" * 5000, b"data", END]
    got: list[bytes] = []
    async with (
        scripted(script) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(chunked_head())
        for piece in pieces:
            say(client, piece)
            got.append(await asyncio.wait_for(arrived.get(), 5))
        client.send(b"0\r\n\r\n")
        answer = await client.answer()

    assert got == pieces
    assert answer.status == 200
    assert json.loads(answer.body) == {"text": "hello"}


async def test_a_counted_upload_stays_counted() -> None:
    """The engine is told the length that the caller has told us."""
    body = MODEL + FILE_HEAD + b"x" * 100_000 + END

    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(counted(body))

    request = engine.requests[0]
    assert answer.status == 200
    assert request.body == body
    assert request.header(b"content-length") == b"%d" % len(body)
    assert request.header(b"content-type") == FORM


@pytest.mark.parametrize(
    "cut",
    [[MODEL + FILE_HEAD + END], [MODEL[:20], MODEL[20:70], MODEL[70:], FILE_HEAD + END]],
    ids=["at_once", "in_pieces"],
)
async def test_the_model_is_found_before_the_file(cut: Sequence[bytes]) -> None:
    """A form that names its model first is treated as one for that model."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head())
            for piece in cut:
                say(client, piece)
            client.send(b"0\r\n\r\n")
            await client.answer()
        line = await proxy.log.line()

    assert line["model"] == "whisper-1"
    assert engine.requests[0].body == b"".join(cut)


async def test_a_model_behind_the_file_is_not_waited_for() -> None:
    """Waiting for it would mean keeping the file."""
    arrived = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece()
        arrived.set()
        await exchange.body()
        exchange.json({})

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head())
            say(client, FILE_HEAD + b"RIFF")
            await asyncio.wait_for(arrived.wait(), 5)
            say(client, b"\r\n" + MODEL + END)
            client.send(b"0\r\n\r\n")
            await client.answer()
        line = await proxy.log.line()

    assert line["model"] is None


async def test_a_form_that_names_another_model_behind_the_file_is_never_complete() -> None:
    """Who may use one model only would get the other from a server that takes the last."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.body()
        exchange.json({})

    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head())
            say(client, MODEL + FILE_HEAD + b"RIFF")
            await engine.reached()
            say(client, b"\r\n" + part(b"model", b"whisper-2") + END)
            client.send(b"0\r\n\r\n")
            answer = await client.answer()
        await engine.abandoned()

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "model"
    assert b"whisper-2" not in engine.requests[0].body


async def test_a_large_field_before_the_model_ends_the_search() -> None:
    """What is kept for the search is bounded, whatever the form looks like."""
    body = part(b"prompt", b"x" * 200_000) + MODEL + FILE_HEAD + END

    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(counted(body))
        line = await proxy.log.line()

    assert answer.status == 200
    assert engine.requests[0].body == body
    assert line["model"] is None


async def test_an_upload_is_not_taken_faster_than_the_engine_reads() -> None:
    """A caller with a fast line and an engine with a slow one cost us no memory."""
    size = 32 * 1024 * 1024
    go_on = asyncio.Event()
    taken = 0

    async def script(exchange: Exchange) -> None:
        nonlocal taken
        exchange.keep_reads = False
        await exchange.head()
        exchange.stop_reading()
        await go_on.wait()
        exchange.go_on_reading()
        while taken < size:
            taken += len(await exchange.some())
        exchange.json({})

    async with (
        scripted(script) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        headers = [(b"content-type", b"audio/wav"), (b"content-length", b"%d" % size)]
        client.send(request_bytes(PATH, headers=headers, body=None))
        client.send(b"x" * size)
        await engine.reached()
        unsent = await settled(client)
        go_on.set()
        answer = await client.answer()

    assert unsent > size // 4  # the rest is in the buffers of the kernel
    assert answer.status == 200
    assert taken == size


async def settled(client: RawClient) -> int:
    """Return what is still unsent once nothing more goes out."""
    unsent = client.unsent
    while True:
        await asyncio.sleep(0.1)
        if client.unsent == unsent:
            return unsent
        unsent = client.unsent


async def test_a_declared_upload_over_the_limit_is_refused_unread() -> None:
    """Who announces too much is answered before the first byte of it."""
    head = request_bytes(
        PATH, headers=[(b"content-type", b"audio/wav"), (b"content-length", b"1001")], body=None
    )

    async with scripted(ECHO) as engine, proxied(engine.upstream, max_upload=1000) as proxy:
        answer = await proxy.ask(head)

    assert answer.status == 413
    assert engine.accepted == 0


async def test_an_undeclared_upload_is_cut_at_the_limit() -> None:
    """The engine never sees the end of it, so that it cannot take a part for the whole."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.body()
        exchange.json({})

    async with scripted(script) as engine, proxied(engine.upstream, max_upload=1000) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head(content_type=b"audio/wav"))
            say(client, b"x" * 600)
            await engine.reached()
            say(client, b"x" * 600)
            answer = await client.answer()
        await engine.abandoned()

    assert answer.status == 413
    assert json.loads(answer.body)["error"]["code"] == "request_too_large"
    assert len(engine.requests[0].body) <= 1000
    assert engine.requests[0].trailers == b""


async def test_a_caller_who_leaves_in_the_middle_leaves_no_whole_upload() -> None:
    """The engine sees the connection end before the last chunk, at once."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head(content_type=b"audio/wav"))
            say(client, b"RIFF")
            exchange = await engine.reached()
            await exchange.anything()
        await engine.abandoned()
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert line["status"] == 499
    assert engine.requests[0].trailers == b""


async def test_an_upload_that_stops_is_given_up() -> None:
    """Neither the engine nor we wait for ever for what does not come."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, timeout_body=0.2) as proxy,
        proxy.client() as client,
    ):
        client.send(chunked_head(content_type=b"audio/wav"))
        say(client, b"RIFF")
        answer = await client.answer()
        await engine.abandoned()

    assert answer.status == 408
    assert json.loads(answer.body)["error"]["code"] == "request_timeout"
    assert engine.requests[0].body == b"RIFF"
    assert engine.requests[0].trailers == b""


async def test_a_slow_upload_is_not_given_up(connection: Connection) -> None:
    """How long a whole one takes depends on its size: a new piece starts the clock anew."""
    if connection is not Connection.UVICORN:
        pytest.skip("our own server asks for a rate as well; its tests say which")
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, timeout_body=1.0) as proxy,
        proxy.client() as client,
    ):
        client.send(chunked_head(content_type=b"audio/wav"))
        for _ in range(4):
            say(client, b"slow")
            await asyncio.sleep(0.35)
        client.send(b"0\r\n\r\n")
        answer = await client.answer()

    assert answer.status == 200
    assert engine.requests[0].body == b"slow" * 4


@pytest.mark.parametrize("by", ["operator", "caller"])
async def test_an_upload_does_not_outlast_the_time_for_the_whole_request(by: str) -> None:
    """Its pieces renew the clock of the upload, and not this one."""
    headers = [(b"content-type", FORM), (b"transfer-encoding", b"chunked")]
    if by == "caller":
        headers.append((b"x-llmproxy-timeout", b"0.4"))

    async def drip(client: RawClient) -> None:
        while True:
            say(client, b"\0")
            await asyncio.sleep(0.05)

    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, timeout_total=0.4 if by == "operator" else 0) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(PATH, headers=headers, body=b""))
        say(client, MODEL + FILE_HEAD)
        dripping = asyncio.create_task(drip(client))
        try:
            answer = await client.answer()
        finally:
            dripping.cancel()
        await engine.abandoned()

    assert answer.status == 504
    assert json.loads(answer.body)["error"]["code"] == "upstream_timeout"


async def test_half_an_upload_is_never_sent_again() -> None:
    """It can be read once; who had it first may have worked on it."""

    async def dies(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece()
        exchange.reset()

    async with scripted(in_turn(dies, ECHO)) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(counted(b"RIFF" * 1000, b"audio/wav"))
        line = await proxy.log.line()

    assert answer.status == 502
    assert engine.accepted == 1
    assert line["attempts"] == 1


async def test_an_upload_takes_no_connection_that_may_be_dying() -> None:
    """A reused one may be closed just then, and an upload cannot be repeated."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        await proxy.ask(request_bytes())
        await proxy.ask(counted(b"RIFF", b"audio/wav"))

    assert engine.accepted == 2


async def test_an_early_answer_is_passed_on_at_once() -> None:
    """An engine may refuse a file before it has read it; the caller need not go on."""

    async def refuses(exchange: Exchange) -> None:
        await exchange.head()
        exchange.json({"error": {"message": "too long"}}, b"400 Bad Request")

    async with scripted(refuses) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head(content_type=b"audio/wav"))
            say(client, b"RIFF")
            answer = await client.answer()
        line = await proxy.log.line()

    assert answer.status == 400
    assert json.loads(answer.body) == {"error": {"message": "too long"}}
    assert line["outcome"] == "refused"


async def test_an_answer_before_the_end_of_the_upload_is_noticed_to_break() -> None:
    """A caller who leaves while it is still sending is noticed, the answer begun or not."""

    async def answers_early(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece()
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"text":')
        await exchange.closed()

    async with scripted(answers_early) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(chunked_head(content_type=b"audio/wav"))
            say(client, b"RIFF")
            await client.head()
            await client.anything()
        await engine.abandoned()
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"


async def test_a_compressed_upload_goes_on_as_it_is() -> None:
    """What we do not read we need not unpack."""
    body = b"\x1f\x8b" + bytes(range(256))
    request = request_bytes(
        b"/v1/files",
        headers=[(b"content-type", b"application/octet-stream"), (b"content-encoding", b"gzip")],
        body=body,
    )

    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request)

    assert answer.status == 200
    assert engine.requests[0].body == body
    assert engine.requests[0].header(b"content-encoding") == b"gzip"


async def test_an_empty_upload_is_an_upload() -> None:
    """Nothing at all, properly delimited, is passed on as such."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(chunked_head(content_type=b"audio/wav") + b"0\r\n\r\n")
        answer = await client.answer()

    assert answer.status == 200
    assert engine.requests[0].body == b""
