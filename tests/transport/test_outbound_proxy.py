"""The way to a model server through somebody else's proxy."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest

from llmproxy.errors import UpstreamTimeout, UpstreamUnreachable
from llmproxy.records import Upstream
from tests.support.calls import GET, Pieces, ask, body_of, fetch, post
from tests.support.tls import Authority
from tests.support.upstream import Exchange, Script, ScriptedServer, json_answer, scripted
from tests.transport.conftest import Connect

pytestmark = pytest.mark.parametrize("kind", ["httpx"])  # ours cannot go there

BOTH = pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])


@dataclass
class OutboundProxy:
    """Makes tunnels and asks on behalf of others; `asked` has the heads that it was sent."""

    port: int = 0
    refusal: bytes = b""  # the answer to whoever wants a tunnel; empty = the tunnel
    silent: bool = False
    asked: list[bytes] = field(default_factory=list)

    def before(self, server: ScriptedServer, ca: str | None, credentials: str = "") -> Upstream:
        """Return a server as one that is reached through this proxy."""
        proxy = f"http://{credentials}127.0.0.1:{self.port}"
        return replace(server.upstream, proxy=proxy, ca=ca)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            method, target, rest = head.split(b" ", 2)
            if self.silent:
                await reader.read()
            elif method != b"CONNECT":
                address, slash, path = target.removeprefix(b"http://").partition(b"/")
                await self._pass_on(
                    address, method + b" " + slash + path + b" " + rest, reader, writer
                )
            elif self.refusal:
                writer.write(self.refusal)
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._pass_on(target, b"", reader, writer)
        writer.close()

    async def _pass_on(
        self,
        address: bytes,
        first: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        host, _, port = address.partition(b":")
        from_server, to_server = await asyncio.open_connection(host.decode(), int(port))
        to_server.write(first)
        await asyncio.gather(_pump(reader, to_server), _pump(from_server, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundProxy]:
    """A proxy that listens."""
    proxy = OutboundProxy()
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    yield proxy
    listener.close()
    await listener.wait_closed()


@asynccontextmanager
async def engine(
    script: Script, authority: Authority, encrypted: bool
) -> AsyncIterator[ScriptedServer]:
    """Serve with or without TLS."""
    tls: ssl.SSLContext | None = authority.server("127.0.0.1") if encrypted else None
    async with scripted(script, tls=tls) as server:
        yield server


@BOTH
async def test_the_server_is_asked_for_the_very_target(
    connect: Connect, authority: Authority, outbound: OutboundProxy, encrypted: bool
) -> None:
    """The proxy is told who is meant; what is wanted there keeps its bytes."""
    outgoing = GET._replace(target=b'/v1/a%2Bb/c:d?x=%2f&y="|;z')
    async with engine(json_answer({"ok": 1}), authority, encrypted) as server:
        transport = connect(outbound.before(server, authority.file if encrypted else None))
        answer = await fetch(transport, outgoing)

    place = b"127.0.0.1:%d" % server.address[1]
    line = outbound.asked[0].partition(b"\r\n")[0]
    assert answer == (200, b'{"ok":1}')
    assert server.requests[0].target == outgoing.target
    if encrypted:
        assert line == b"CONNECT %b HTTP/1.1" % place
    else:
        assert line == b"GET http://%b%b HTTP/1.1" % (place, outgoing.target)


@BOTH
async def test_the_proxy_is_shown_its_password_and_the_server_is_not(
    connect: Connect, authority: Authority, outbound: OutboundProxy, encrypted: bool
) -> None:
    """Which a plain proxy has to see to: it is sent what the server is sent."""
    async with engine(json_answer({}), authority, encrypted) as server:
        ca = authority.file if encrypted else None
        await fetch(connect(outbound.before(server, ca, "ada:secret@")))

    expected = b"proxy-authorization: basic " + b64encode(b"ada:secret").lower()
    assert expected in outbound.asked[0].lower()
    if encrypted:
        assert server.requests[0].header(b"proxy-authorization") is None


@BOTH
async def test_an_upload_goes_through_while_the_clock_of_the_answer_stands(
    connect: Connect, authority: Authority, outbound: OutboundProxy, encrypted: bool
) -> None:
    """It runs from the last byte of the request, not from the wish for a tunnel."""
    upload = Pieces(b"a" * 1000, length=2000, open_end=True)
    begun = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece()
        begun.set()
        await exchange.body()
        exchange.json({"length": len(exchange.requests[-1].body)})

    async with engine(script, authority, encrypted) as server:
        transport = connect(outbound.before(server, authority.file if encrypted else None))
        asking = asyncio.ensure_future(ask(transport, post(upload), answer=0.2))
        await begun.wait()
        done, _ = await asyncio.wait([asking], timeout=0.5)
        upload.put(b"b" * 1000)
        upload.end()
        call = await asking
        body = await body_of(call)
        call.close()

    assert not done
    assert body == b'{"length":2000}'


async def test_a_server_that_has_http_2_too_is_asked_over_http_1(
    connect: Connect, authority: Authority, outbound: OutboundProxy
) -> None:
    """There a call that is closed closes a connection, and the server knows that nobody waits."""
    tls = authority.server("127.0.0.1")
    tls.set_alpn_protocols(["h2", "http/1.1"])

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(b"data: 1\n\n")
        await exchange.closed()

    async with scripted(script, tls=tls) as server:
        call = await ask(connect(outbound.before(server, authority.file)), post())
        await call.read(5)
        call.close()
        await server.abandoned()


async def test_a_proxy_that_makes_no_tunnel(
    connect: Connect, authority: Authority, outbound: OutboundProxy
) -> None:
    """The server cannot be reached; the proxy's answer is not taken for the server's."""
    outbound.refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"
    async with engine(json_answer({}), authority, True) as server:
        with pytest.raises(UpstreamUnreachable):
            await fetch(connect(outbound.before(server, authority.file)))

    assert server.requests == []


async def test_a_proxy_that_says_nothing(
    connect: Connect, authority: Authority, outbound: OutboundProxy
) -> None:
    """A tunnel is a part of connecting, and has the clock of it."""
    outbound.silent = True
    async with engine(json_answer({}), authority, True) as server:
        with pytest.raises(UpstreamTimeout) as raised:
            await ask(connect(outbound.before(server, authority.file)), connect=0.1)

    assert raised.value.unasked
