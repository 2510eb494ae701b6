"""What is in order is served, however it is written and cut."""

import pytest

from tests.server.corpus import BODY, CHUNKED, LENGTH, Good, post
from tests.server.good_requests import GOOD, H2C
from tests.support.calls import settle
from tests.support.client import raw_client, request_bytes
from tests.support.proxy import serving
from tests.support.rig import proxied
from tests.support.upstream import Exchange, json_answer, scripted

SPLIT = post(
    CHUNKED,
    b"X: a\r\n",
    body=b"3;a=b\r\n" + BODY[:3] + b"\r\n4\r\n" + BODY[3:] + b"\r\n0\r\nT: u\r\n\r\n",
)


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good.id)
async def test_it_is_served(good: Good) -> None:
    """With a 200, and its body reaches the engine as it is."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(good.raw)
        answer = await client.answer(to=good.raw.split(b" ")[0])

    assert answer.status == 200, answer.body
    assert client.complete
    assert engine.requests[0].body == good.body


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good.id)
async def test_it_is_served_byte_by_byte(good: Good) -> None:
    """Each byte in a packet of its own."""
    if len(good.raw) > 1000:
        pytest.skip("the sizes are what this one is about")
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        for byte in good.raw:
            client.send(bytes([byte]))
            await settle()
        answer = await client.answer(to=good.raw.split(b" ")[0])

    assert answer.status == 200, answer.body
    assert engine.requests[0].body == good.body


async def test_it_may_be_cut_anywhere() -> None:
    """Two packets, the second beginning at each offset in turn."""
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        for at in range(1, len(SPLIT)):
            async with proxy.client() as client:
                client.send(SPLIT[:at])
                await settle()
                client.send(SPLIT[at:])
                answer = await client.answer()
                assert answer.status == 200, f"cut at {at}: {answer.body!r}"

    assert {request.body for request in engine.requests} == {BODY}
    assert len(engine.requests) == len(SPLIT) - 1


async def test_a_whole_corpus_in_front_of_a_real_serve() -> None:
    """The same under `llmproxy serve`, one after the other in one process."""
    wrong = {}
    async with (
        scripted(json_answer({})) as engine,
        serving({"LLMPROXY_UPSTREAMS": engine.url}) as proxy,
    ):
        for good in GOOD:
            async with raw_client(port=proxy.port) as client:
                client.send(good.raw)
                answer = await client.answer(to=good.raw.split(b" ")[0])
            if answer.status != 200 or engine.requests[-1].body != good.body:
                wrong[good.id] = answer.raw + answer.body

    assert wrong == {}


@pytest.mark.parametrize("good", [g for g in GOOD if g.body == BODY], ids=lambda good: good.id)
async def test_the_connection_stays_usable(good: Good) -> None:
    """Unless it was to be closed, another request can follow on it."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(good.raw)
        answer = await client.answer()
        closes = answer.header(b"connection") == b"close"
        client.send(request_bytes())
        if closes:
            rest = await client.rest()
        else:
            second = await client.answer()

    said = good.raw.lower()
    wanted = b"connection: close" in said or b"http/1.0" in said or b"connection: upgrade" in said
    assert closes == wanted
    assert rest == b"" if closes else second.status == 200


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["counted", "chunked"])
async def test_an_upgrade_may_have_its_body_in_a_later_packet(framing: bytes) -> None:
    """curl asks for HTTP/2 with a POST whose body follows; it is served as HTTP/1.1."""
    body = BODY if framing == LENGTH else b"7\r\n" + BODY + b"\r\n0\r\n\r\n"
    whole = post(H2C, framing, body=body)
    head, _, _ = whole.partition(b"\r\n\r\n")
    cuts = range(len(head), len(whole))
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        for at in cuts:
            async with proxy.client() as client:
                client.send(whole[:at])
                await settle()
                client.send(whole[at:])
                answer = await client.answer()
            assert answer.status == 200, f"cut at {at}"
            assert answer.header(b"upgrade") is None

    assert [request.body for request in engine.requests] == [BODY] * len(cuts)
    assert all(request.header(b"upgrade") is None for request in engine.requests)


@pytest.mark.parametrize("later", [False, True], ids=["at_once", "later"])
async def test_a_broken_body_behind_an_upgrade_is_refused(later: bool) -> None:
    """It is read like any other."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(post(H2C, CHUNKED, body=b""))
        if later:
            await settle()
        client.send(b"nonsense\r\n")
        answer = await client.answer()
        await client.closed()

    assert answer.status == 400
    assert engine.accepted == 0


async def test_the_first_bytes_of_http_2_behind_an_upgrade_are_ignored() -> None:
    """A client that switches without being told to gets its answer in HTTP/1.1, and the end."""
    raw = request_bytes(b"/v1/models", method=b"GET", body=None)[:-2] + H2C + b"\r\n"
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(raw + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        answer = await client.answer(to=b"GET")
        rest = await client.rest()

    assert answer.status == 200
    assert rest == b""
    assert len(engine.requests) == 1


async def test_a_trailer_is_never_a_header() -> None:
    """Not even one that would say who is asking; and the engine does not see it."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.json({})

    body = b"7\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer x\r\nHost: y\r\nX-Late: z\r\n\r\n"
    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(post(CHUNKED, body=body))

    asked = engine.requests[0]
    assert answer.status == 200
    assert asked.header(b"x-late") is None and asked.header(b"authorization") is None
    assert asked.trailers in (b"", b"\r\n")
    assert asked.body == BODY
