"""Who may answer for an upstream, and who we are to it."""

import datetime
import ssl
from dataclasses import replace

import pytest

from llmproxy.errors import UpstreamBroken, UpstreamError, UpstreamUnreachable
from llmproxy.transport.connect import Kind
from tests.support.calls import ask, body_of, fetch, post, settle
from tests.support.tls import Authority
from tests.support.upstream import Exchange, ScriptedServer, json_answer, scripted
from tests.transport.conftest import Connect, only_http1


def trusting(
    server: ScriptedServer, authority: Authority, cert: str | None = None
) -> ScriptedServer:
    """Let the upstream be known by the authority's certificate, and ourselves by `cert`."""
    server.upstream = replace(server.upstream, ca=authority.file, cert=cert)
    return server


async def test_a_known_authority_is_believed(
    connect: Connect, kind: Kind, authority: Authority
) -> None:
    """The upstream's own CA file opens the way, and connections are used again."""
    async with scripted(json_answer({}), tls=authority.server("127.0.0.1")) as server:
        transport = connect(trusting(server, authority))
        for _ in range(3):
            assert await fetch(transport) == (200, b"{}")
            await settle()

    assert server.accepted == (1 if kind == "http1" else 3)  # httpx uses each connection once


async def test_an_unknown_authority_is_refused(connect: Connect, authority: Authority) -> None:
    """Not a byte of the request is said to a server that cannot prove itself."""
    async with scripted(json_answer({}), tls=authority.server("127.0.0.1")) as server:
        transport = connect(server)
        with pytest.raises(UpstreamUnreachable):
            await ask(transport)

        assert server.requests == []
        assert transport.statistics()["open"] == 0


async def test_a_wrong_name_is_refused(connect: Connect, authority: Authority) -> None:
    """A true certificate of somebody else's."""
    async with scripted(json_answer({}), tls=authority.server("elsewhere.test")) as server:
        with pytest.raises(UpstreamUnreachable):
            await ask(connect(trusting(server, authority)))

        assert server.requests == []


@pytest.mark.parametrize(("name", "good"), [("llm.test", True), ("other.test", False)])
async def test_a_server_that_was_found_by_a_name_must_prove_that_name(
    name: str, good: bool, connect: Connect, authority: Authority
) -> None:
    """Not its address, which anybody could have put there; and it is asked by that name."""
    async with scripted(json_answer({}), tls=authority.server(name)) as server:
        trusting(server, authority)
        server.upstream = replace(server.upstream, server_name="llm.test")
        transport = connect(server)
        if good:
            assert await fetch(transport) == (200, b"{}")
        else:
            with pytest.raises(UpstreamUnreachable):
                await ask(transport)

    assert bool(server.requests) is good


async def test_an_expired_certificate_is_refused(connect: Connect, authority: Authority) -> None:
    """Yesterday it would have been good."""
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1", not_after=yesterday).configure_cert(context)

    async with scripted(json_answer({}), tls=context) as server:
        with pytest.raises(UpstreamUnreachable):
            await ask(connect(trusting(server, authority)))


async def test_a_server_without_tls_is_refused(connect: Connect, authority: Authority) -> None:
    """It is not spoken to in the open instead."""

    async def script(exchange: Exchange) -> None:
        hello = await exchange.some()
        assert hello[:1] == b"\x16", "something else than a handshake was sent"
        exchange.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await exchange.closed()

    async with scripted(script) as server:
        server.upstream = replace(server.upstream, scheme="https")
        with pytest.raises(UpstreamUnreachable):
            await ask(connect(trusting(server, authority)))


async def test_a_client_certificate_is_shown(connect: Connect, authority: Authority) -> None:
    """To a server that asks for one."""
    context = authority.demanding_server("127.0.0.1")

    async with scripted(json_answer({}), tls=context) as server:
        ours = authority.client_file("proxy.test")
        transport = connect(trusting(server, authority, cert=ours))

        assert await fetch(transport) == (200, b"{}")
        shown = server.exchanges[0].transport.get_extra_info("peercert")
        assert ("DNS", "proxy.test") in shown["subjectAltName"]


async def test_without_a_client_certificate_there_is_no_answer(
    connect: Connect, authority: Authority
) -> None:
    """In TLS 1.3 the refusal comes after our side is done: as a broken connection."""
    context = authority.demanding_server("127.0.0.1")

    async with scripted(json_answer({}), tls=context) as server:
        with pytest.raises(UpstreamError) as refusal:
            await fetch(connect(trusting(server, authority)))

        assert isinstance(refusal.value, UpstreamUnreachable | UpstreamBroken)
        assert server.requests == []


async def test_large_bodies_go_both_ways(connect: Connect, authority: Authority) -> None:
    """More than a record, a buffer or a window holds."""
    size = 3 << 20

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        exchange.begin()
        exchange.chunk(request.body[::-1])
        exchange.end()

    async with scripted(script, tls=authority.server("127.0.0.1")) as server:
        body = bytes(range(256)) * (size // 256)
        call = await ask(connect(trusting(server, authority)), post(body))

        assert await body_of(call) == body[::-1]


@only_http1("httpx waits for the end of a TLS connection to be said politely, for a while")
async def test_leaving_closes_at_once(connect: Connect, authority: Authority) -> None:
    """Also where a polite goodbye would wait for an answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"one")
        await exchange.closed()

    async with scripted(script, tls=authority.server("127.0.0.1")) as server:
        transport = connect(trusting(server, authority))
        call = await ask(transport)
        await call.read(0)
        call.close()
        await server.exchanges[0].closed()

        assert transport.statistics()["open"] == 0
