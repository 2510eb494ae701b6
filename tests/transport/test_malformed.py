"""Answers that are none: the caller hears of it, and no byte of them goes any further."""

import asyncio

import pytest

from llmproxy.errors import UpstreamBroken
from llmproxy.transport import Outgoing
from llmproxy.transport.http1.answer_reader import MAX_HEAD
from tests.support.calls import GET, HEAD, ask, body_of, fetch, settle
from tests.support.upstream import Exchange, answering, in_turn, json_answer, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect, only_http1

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
READ = 256 * 1024  # bytes; the most that one read of the loop brings
ENOUGH = 4 << 20  # bytes; whoever reads so much of a head has no limit

HEADS = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "text": b"no such thing\r\n\r\n",
    "tls_alert": b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n",
    "a_request": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "http_0_9": b"<html>hello</html>\r\n\r\n",
    "http_2": b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
    "version_nonsense": b"HTTP/x.y 200 OK\r\ncontent-length: 0\r\n\r\n",
    "status_text": b"HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n",
    "status_negative": b"HTTP/1.1 -200 OK\r\ncontent-length: 0\r\n\r\n",
    "status_1000": b"HTTP/1.1 1000 OK\r\ncontent-length: 0\r\n\r\n",
    "two_lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "length_negative": OK + b"content-length: -5\r\n\r\nhello",
    "length_with_a_plus": OK + b"content-length: +5\r\n\r\nhello",
    "length_hexadecimal": OK + b"content-length: 0x5\r\n\r\nhello",
    "length_with_a_line": OK + b"content-length: 5_0\r\n\r\nhello",
    "length_text": OK + b"content-length: five\r\n\r\nhello",
    "coding_unknown": OK + b"transfer-encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding_gzip": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "space_before_colon": OK + b"content-length : 5\r\n\r\nhello",
    "no_colon": OK + b"nonsense\r\ncontent-length: 5\r\n\r\nhello",
    "no_name": OK + b": x\r\ncontent-length: 5\r\n\r\nhello",
    "nul_in_a_value": OK + b"x: a\x00b\r\ncontent-length: 5\r\n\r\nhello",
}
# h11, which httpx reads with, takes a lenient view of these.
LENIENT_HEADS = {
    "status_99": b"HTTP/1.1 99 OK\r\ncontent-length: 0\r\n\r\n",
    "status_099": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "status_000": b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
    "status_600": b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
    "status_999": b"HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n",
    "length_and_chunks": OK
    + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks_and_length": OK
    + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding_twice": OK
    + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding_not_last": OK + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "length_list": OK + b"content-length: 5, 5\r\n\r\nhello",
    "length_empty": OK + b"content-length:\r\n\r\nhello",
    "length_of_30_digits": OK + b"content-length: " + b"1" * 30 + b"\r\n\r\nhello",
    "http_2_0": b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "http_0_9_with_a_head": b"HTTP/0.9 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "folded": OK + b"x: a\r\n b\r\ncontent-length: 5\r\n\r\nhello",
    "length_twice_the_same": OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "lf_alone": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "cr_in_a_value": OK + b"x: a\rb\r\ncontent-length: 5\r\n\r\nhello",
}
BODIES = {
    "size_negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "size_with_a_plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "size_with_0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size_with_a_line": b"5_0\r\nhello\r\n0\r\n\r\n",
    "size_missing": b"\r\nhello\r\n0\r\n\r\n",
    "size_of_30_digits": b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
    "longer_than_its_size": b"4\r\nhello\r\n0\r\n\r\n",
    "no_line_end": b"5\r\nhello0\r\n\r\n",
    "text": b"hello, this is not chunked\r\n",
}  # fmt: skip


async def refused_and_forgotten(connect: Connect, answer: bytes) -> None:
    """See that the answer is refused, its connection dropped, and the next call unharmed."""
    async with scripted(in_turn(answering(answer), json_answer({}))) as server:
        transport = connect(server)
        with pytest.raises(UpstreamBroken):
            call = await ask(transport)
            try:
                await body_of(call)
            finally:
                call.close()
        await server.exchanges[0].closed()

        assert await fetch(transport) == (200, b"{}")

    assert len(server.requests) == 2


@pytest.mark.parametrize("answer", HEADS.values(), ids=HEADS.keys())
async def test_a_malformed_head_is_refused(connect: Connect, answer: bytes) -> None:
    """What could be read in two ways, or in none, is not an answer."""
    await refused_and_forgotten(connect, answer)


@only_http1("h11 is more lenient, and httpx gives us no say in it")
@pytest.mark.parametrize("answer", LENIENT_HEADS.values(), ids=LENIENT_HEADS.keys())
async def test_our_own_reader_is_strict(connect: Connect, answer: bytes) -> None:
    """Where parsers are known to disagree, the answer is refused."""
    await refused_and_forgotten(connect, answer)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_malformed_chunks_are_refused(connect: Connect, body: bytes) -> None:
    """The head was good, so the reader of the body hears of it."""
    await refused_and_forgotten(connect, CHUNKED + body)


async def test_what_came_before_the_fault_can_be_read(connect: Connect) -> None:
    """The chunks before the broken one were said, and are passed on."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(CHUNKED + b"5\r\nhello\r\n")
        await hold.wait()
        exchange.send(b"zz\r\n")

    async with scripted(script) as server:
        call = await ask(connect(server))

        assert await call.read(PATIENCE) == b"hello"
        hold.set()
        with pytest.raises(UpstreamBroken):
            await call.read(PATIENCE)
        with pytest.raises(UpstreamBroken):
            await call.read(PATIENCE)
        call.close()


async def pour(exchange: Exchange, start: bytes, piece: bytes) -> None:
    """Send the same over and over, until the client leaves or has taken far too much."""
    exchange.send(start)
    while not exchange.ended and exchange.sent_bytes < ENOUGH:
        exchange.send(piece)
        await exchange.sent()
        await asyncio.sleep(0)


ENDLESS = {
    "field": (OK + b"x: ", b"x" * 1000),
    "fields": (OK, b"x-field: value\r\n"),
    "reason": (b"HTTP/1.1 200 ", b"very " * 200),
}
ENDLESS_OURS = {
    "informational": (b"", b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"),
    "field_of_an_informational": (b"HTTP/1.1 103 Early Hints\r\nx: ", b"x" * 1000),
}
ENDLESS_BODY = {
    "extension": (CHUNKED + b"5;", b"x" * 1000),
    "trailers": (CHUNKED + b"0\r\n", b"x-trailer: value\r\n"),
    "size": (CHUNKED, b"0" * 1000),
}


async def closed_in_time(connect: Connect, start: bytes, piece: bytes) -> None:
    """See that a head without an end is cut off, long before it fills the memory."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await pour(exchange, start, piece)

    async with scripted(script, send_buffer=16384) as server:
        with pytest.raises(UpstreamBroken):
            call = await ask(connect(server))
            await body_of(call)
        await server.exchanges[0].closed()

    assert server.exchanges[0].sent_bytes < 2 << 20


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_an_endless_head_is_cut_off(connect: Connect, start: bytes, piece: bytes) -> None:
    """One field or many: at 64 KiB of ours, or whatever is still in the kernel then."""
    await closed_in_time(connect, start, piece)


@only_http1("httpx forgets informational answers as they come, and only the clock ends it")
@pytest.mark.parametrize(("start", "piece"), ENDLESS_OURS.values(), ids=ENDLESS_OURS.keys())
async def test_endless_hints_are_cut_off(connect: Connect, start: bytes, piece: bytes) -> None:
    """Informational answers count towards the limit of the head they announce."""
    await closed_in_time(connect, start, piece)


@only_http1("h11 has limits of its own for these")
@pytest.mark.parametrize(("start", "piece"), ENDLESS_BODY.values(), ids=ENDLESS_BODY.keys())
async def test_endless_framing_is_cut_off(connect: Connect, start: bytes, piece: bytes) -> None:
    """What surrounds the bytes of a body has the same limit as the head before it."""
    await closed_in_time(connect, start, piece)


@only_http1("h11's limit is another, and holds only for what is incomplete")
@pytest.mark.parametrize(
    ("size", "cut", "accepted"),
    [
        pytest.param(MAX_HEAD - 1000, READ, True, id="below_at_once"),
        pytest.param(MAX_HEAD - 1000, 1000, True, id="below_in_pieces"),
        pytest.param(MAX_HEAD + 1000, 1000, False, id="above_in_pieces"),
        pytest.param(MAX_HEAD + READ, READ, False, id="above_any_read"),
    ],
)
async def test_the_limit_of_a_head(connect: Connect, size: int, cut: int, accepted: bool) -> None:
    """64 KiB, however it is cut."""
    field = b"x: " + b"y" * 1000 + b"\r\n"
    head = OK + field * (size // len(field)) + b"content-length: 0\r\n\r\n"

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        for start in range(0, len(head), cut):
            exchange.send(head[start : start + cut])
            await exchange.sent()
            await settle()

    async with scripted(script) as server:
        transport = connect(server)
        if accepted:
            call = await ask(transport)
            assert call.status == 200
            assert len(call.headers) == size // len(field) + 1
        else:
            with pytest.raises(UpstreamBroken):
                await ask(transport)


@only_http1("h11's limit is another, and holds only for what is incomplete")
async def test_a_body_does_not_make_a_head_shorter(connect: Connect) -> None:
    """A head that is too long is, also when the read that ends it brings the body."""
    field = b"x: " + b"y" * 1000 + b"\r\n"
    head = OK + field * (MAX_HEAD // len(field) + 30) + b"content-length: 4\r\n\r\n"

    async with scripted(answering(head + b"body")) as server:
        with pytest.raises(UpstreamBroken, match="head that is too long"):
            await fetch(connect(server))


async def test_a_large_body_is_no_large_head(connect: Connect) -> None:
    """What comes along with a head does not count towards it."""
    body = b"x" * (1 << 20)
    answer = OK + b"content-length: %d\r\n\r\n%b" % (len(body), body)

    async with scripted(answering(answer)) as server:
        assert await fetch(connect(server)) == (200, body)


FOREIGN = OK + b"content-length: 7\r\n\r\nforeign"


async def dropped(connect: Connect, outgoing: Outgoing, answer: bytes, body: bytes) -> None:
    """See that an answer ends where it should, and that the calls after it get their own."""
    async with scripted(in_turn(answering(answer), json_answer({}))) as server:
        transport = connect(server)

        assert await fetch(transport, outgoing) == (200, body)
        for _ in range(3):
            await settle()
            assert await fetch(transport) == (200, b"{}")
        assert server.exchanges[0].ended


@pytest.mark.parametrize(
    ("outgoing", "answer", "body"),
    [
        pytest.param(GET, OK + b"content-length: 5\r\n\r\nhello" + FOREIGN, b"hello", id="counted"),
        pytest.param(GET, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + FOREIGN, b"hello", id="chunked"),
        pytest.param(HEAD, OK + b"content-length: 0\r\n\r\n" + FOREIGN, b"", id="head"),
    ],
)
async def test_a_second_answer_reaches_nobody(
    connect: Connect, outgoing: Outgoing, answer: bytes, body: bytes
) -> None:
    """Nobody asked for it: it is dropped, and the connection with it."""
    await dropped(connect, outgoing, answer, body)


@pytest.mark.parametrize(
    ("outgoing", "answer", "body"),
    [
        pytest.param(GET, OK + b"content-length: 5\r\n\r\nhello extra", b"hello", id="counted"),
        pytest.param(GET, OK + b"content-length: 0\r\n\r\nextra", b"", id="empty"),
        pytest.param(GET, CHUNKED + b"5\r\nhello\r\n0\r\n\r\nextra", b"hello", id="chunked"),
        pytest.param(HEAD, OK + b"content-length: 7\r\n\r\nforeign", b"", id="head"),
        pytest.param(HEAD, CHUNKED + b"7\r\nforeign\r\n0\r\n\r\n", b"", id="head_chunked"),
    ],
)
async def test_what_comes_behind_an_answer_is_dropped(
    connect: Connect, outgoing: Outgoing, answer: bytes, body: bytes
) -> None:
    """Bytes after the last one, and a body where none may be."""
    await dropped(connect, outgoing, answer, body)


@pytest.mark.parametrize("head", [b"204 No", b"304 Not", b"304 Not\r\ncontent-length: 5"])
async def test_some_answers_have_no_body(connect: Connect, head: bytes) -> None:
    """Whatever follows their head is dropped with the connection."""
    answer = b"HTTP/1.1 " + head + b"\r\n\r\nextra"

    async with scripted(in_turn(answering(answer), json_answer({}))) as server:
        transport = connect(server)
        call = await ask(transport)

        assert await body_of(call) == b""
        call.close()
        await settle()
        assert await fetch(transport) == (200, b"{}")
        assert server.exchanges[0].ended


async def test_an_answer_without_a_question_ends_the_connection(connect: Connect) -> None:
    """What an idle connection says (a 408, as a rule) is nobody's answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.json({"connection": exchange.connection})
        if exchange.connection == 1:
            await asked_once.wait()
            exchange.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 7\r\n\r\nforeign")
            await exchange.closed()

    asked_once = asyncio.Event()
    async with scripted(script) as server:
        transport = connect(server)
        assert await fetch(transport) == (200, b'{"connection":1}')
        asked_once.set()
        await server.exchanges[0].sent()
        for _ in range(5):
            await asyncio.sleep(0)

        assert await fetch(transport) == (200, b'{"connection":2}')
