"""The same server over TLS and on a unix socket."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server.corpus import CHUNKED, LENGTH, post
from tests.server.family import SERVE
from tests.server.verdicts import ALIVE
from tests.support.calls import eventually
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.ports import free_port
from tests.support.process import running
from tests.support.proxy import UNROUTED
from tests.support.streams import CHAT
from tests.support.tls import Authority
from tests.support.upstream import Exchange, ScriptedServer, scripted

LARGE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n"


async def engine(exchange: Exchange) -> None:
    """Stream to those who ask for it, and wait for them to leave."""
    request = await exchange.request()
    if b"stream" not in request.body:
        exchange.json({})
        return
    exchange.begin()
    exchange.chunk(CHAT.events[0])
    await exchange.closed()


@dataclass
class Bound:
    """A proxy, and a way to it."""

    engine: ScriptedServer
    host: str
    port: int
    path: Path | None
    tls: ssl.SSLContext | None

    def client(self) -> AbstractAsyncContextManager[RawClient]:
        """Connect to it."""
        return raw_client(self.host, self.port, path=self.path, tls=self.tls)


@asynccontextmanager
async def over_tls(authority: Authority, folder: Path, **settings: str) -> AsyncIterator[Bound]:
    """Serve TLS ourselves."""
    issued = authority.ca.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for at, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(str(folder / "cert.pem"), append=at > 0)
    trusting = ssl.create_default_context(cafile=authority.file)
    port = free_port()
    async with scripted(engine) as upstream:
        environment = {
            **UNROUTED,
            "LLMPROXY_UPSTREAMS": upstream.url,
            "LLMPROXY_PORT": str(port),
            "LLMPROXY_TLS_CERT": str(folder / "cert.pem"),
            "LLMPROXY_TLS_KEY": str(folder / "key.pem"),
            **settings,
        }
        async with running(SERVE, environment) as process:
            await process.says(f"listens on https://127.0.0.1:{port}")
            yield Bound(upstream, "localhost", port, None, trusting)


@asynccontextmanager
async def on_a_unix_socket(authority: Authority, folder: Path) -> AsyncIterator[Bound]:
    """Listen on a path."""
    path = folder / "llmproxy.sock"
    async with scripted(engine) as upstream:
        environment = {
            **UNROUTED,
            "LLMPROXY_UPSTREAMS": upstream.url,
            "LLMPROXY_HOST": f"unix:{path}",
        }
        async with running(SERVE, environment) as process:
            await process.says(f"listens on unix:{path}")
            yield Bound(upstream, "", 0, path, None)


Bind = Callable[[Authority, Path], AbstractAsyncContextManager[Bound]]
BINDS = pytest.mark.parametrize("bind", [over_tls, on_a_unix_socket], ids=lambda f: f.__name__)


@BINDS
async def test_the_basics_hold(
    bind: Bind,
    authority: Authority,
    tmp_path: Path,
) -> None:
    """Keep-alive, a refusal, a large body refused early, a stream whose client leaves."""
    async with bind(authority, tmp_path) as bound:
        async with bound.client() as client:
            client.send(ALIVE)
            first = await client.answer(to=b"GET")
            client.send(request_bytes())
            second = await client.answer()
        async with bound.client() as client:
            client.send(post(LENGTH, CHUNKED))
            refused = await client.answer()
            await client.closed()
        async with bound.client() as client:
            client.send(LARGE + b"x" * 3_000_000)
            too_large = await client.answer()
        asked = len(bound.engine.requests)
        async with bound.client() as client:
            client.send(request_bytes(body=b'{"stream":true}'))
            stream = await client.head()
            await client.anything()
            exchange = next(e for e in bound.engine.exchanges if not e.ended)
            client.close()
            began = asyncio.get_running_loop().time()
            await eventually(lambda: exchange.ended, "the engine was let go")
            took = asyncio.get_running_loop().time() - began

    assert [first.status, second.status, stream.status] == [200, 200, 200]
    assert first.header(b"connection") is None
    assert refused.status == 400
    assert too_large.status == 413
    assert asked == 2
    assert took < 5


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["nothing", "half_a_hello"])
async def test_a_handshake_has_the_time_of_a_head(
    said: bytes, authority: Authority, tmp_path: Path
) -> None:
    """Until it is over we do not even know of the client, and could not close it for another."""
    async with (
        over_tls(authority, tmp_path, LLMPROXY_TIMEOUT_HEAD="0.5") as bound,
        raw_client("127.0.0.1", bound.port) as client,
    ):
        client.send(said)
        async with asyncio.timeout(10):
            await client.closed()


async def test_a_handshake_without_a_clock(authority: Authority, tmp_path: Path) -> None:
    """Where a head has none."""
    async with (
        over_tls(authority, tmp_path, LLMPROXY_TIMEOUT_HEAD="0") as bound,
        bound.client() as client,
    ):
        client.send(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = await client.answer()

    assert answer.status == 200
