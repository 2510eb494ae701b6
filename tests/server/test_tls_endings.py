"""TLS knows no half-close: an early answer arrives all the same, and nobody stays for ever."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmproxy.server.bounds import Bounds
from llmproxy.types import ASGIApp
from tests.server.apps import GET, Saying, body, saying, start
from tests.support.client import RawClient
from tests.support.rig import served_here
from tests.support.tls import Authority

SHORT = 0.4  # seconds, for whichever clock a test is about
LATE = 5.0  # seconds by which it must have been noticed
PIECE = b"x" * 16_384
UNREAD = 3_000_000  # bytes; more than the kernel takes from somebody who sends them in vain
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@asynccontextmanager
async def asking_over_tls(
    app: ASGIApp, authority: Authority, folder: Path, **bounds: float
) -> AsyncIterator[RawClient]:
    """Connect over TLS, with a small receive buffer, to an app that is served with these bounds."""
    issued = authority.ca.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    trusting = ssl.create_default_context(cafile=authority.file)
    loop = asyncio.get_running_loop()
    async with served_here(
        app,
        bounds=Bounds(**bounds),  # type: ignore[arg-type]  # the clocks are floats
        lifespan="off",
        ssl_certfile=str(folder / "both.pem"),
        ssl_keyfile=str(folder / "both.pem"),
    ) as port:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        _, client = await loop.create_connection(
            RawClient, sock=sock, ssl=trusting, server_hostname="localhost"
        )
        try:
            yield client
        finally:
            client.transport.abort()


def says_no(status: int) -> Saying:
    """Return an app that refuses without reading."""
    return saying(start(status, (b"content-length", b"2")), body(b"no"), read=False)


@pytest.mark.parametrize("status", [404, 413])
async def test_an_early_refusal_arrives(status: int, authority: Authority, tmp_path: Path) -> None:
    """The client is still sending a body that nobody reads; it is not reset meanwhile."""
    async with asking_over_tls(says_no(status), authority, tmp_path, linger=1.0) as client:
        client.send(POST % UNREAD)
        for _ in range(UNREAD // len(PIECE)):
            client.send(PIECE)
            await client.sent()
        answer = await client.answer()
        reset = client.was_reset

    assert answer.status == status
    assert (answer.body, client.complete) == (b"no", True)
    assert answer.header(b"connection") == b"close"
    assert not reset


async def test_who_goes_on_sending_is_cut(authority: Authority, tmp_path: Path) -> None:
    """The refusal stands in its buffer, and it has had its time to read it."""
    loop = asyncio.get_running_loop()
    async with asking_over_tls(
        says_no(413), authority, tmp_path, linger=SHORT, write_timeout=SHORT
    ) as client:
        client.stop_reading()
        began = loop.time()
        client.send(POST % UNREAD)
        async with asyncio.timeout(LATE):
            while not client.lost:
                client.send(b"x")
                await asyncio.sleep(0.02)
        took = loop.time() - began

    assert took >= SHORT


async def test_who_stands_still_is_cut(authority: Authority, tmp_path: Path) -> None:
    """A large answer of which it takes nothing any more."""
    app = saying(start(), *[body(PIECE, more=True)] * 100_000)
    async with asking_over_tls(app, authority, tmp_path, write_timeout=SHORT) as client:
        client.send(GET)
        await client.head()
        client.stop_reading()
        await asyncio.sleep(SHORT + 1)
        given_up = app.ended
        client.go_on_reading()
        await client.closed()

    assert given_up
    assert client.read_bytes < 4 * 1024 * 1024
    assert not client.complete
