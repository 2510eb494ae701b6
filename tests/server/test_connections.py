"""How many clients there may be, and what the kernel is told about each."""

import asyncio
import os
import resource
import socket
import sys
from pathlib import Path

import pytest

from llmproxy.server.bounds import Bounds
from llmproxy.server.deadlines import TICK
from llmproxy.server.place import address
from llmproxy.server.sockets import set_options
from llmproxy.transport.http1.kernel import unacknowledged
from llmproxy.types import Receive, Scope, Send
from tests.server.apps import GET, body, hello, start
from tests.support.client import RawClient, raw_client
from tests.support.rig import served_here

MANY = 10_000


async def connect(port: int) -> RawClient:
    _, client = await asyncio.get_running_loop().create_connection(RawClient, "127.0.0.1", port)
    return client


async def test_the_longest_idle_connection_makes_room() -> None:
    """A new client is let in, and the one that was idle for longest goes."""
    async with served_here(hello(), bounds=Bounds(connections=3), lifespan="off") as port:
        clients = [await connect(port) for _ in range(3)]
        for client in clients:
            client.send(GET)
            await client.answer()
        clients[0].send(GET)  # now the second is the longest idle one
        await clients[0].answer()
        newcomer = await connect(port)
        await clients[1].closed()
        newcomer.send(GET)
        answer = await newcomer.answer()
        open_ = [not client.ended for client in clients]
        for client in [*clients, newcomer]:
            client.transport.abort()

    assert answer.status == 200
    assert open_ == [True, False, True]


async def test_a_busy_connection_never_makes_room() -> None:
    """Where all are busy the newcomer has to go, and is told why."""
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await send(start(204))
        await send(body())

    async with served_here(app, bounds=Bounds(connections=2), lifespan="off") as port:
        clients = [await connect(port) for _ in range(2)]
        for client in clients:
            client.send(GET)
        async with raw_client(port=port) as newcomer:
            refused = await newcomer.answer()
            await newcomer.closed()
        go.set()
        answers = [await client.answer() for client in clients]
        clients[0].close()
        await asyncio.sleep(0.05)
        late = await connect(port)
        late.send(GET)
        let_in = await late.answer()
        for client in [*clients, late]:
            client.transport.abort()

    assert refused.status == 503
    assert refused.header(b"retry-after") == b"1"
    assert [answer.status for answer in answers] == [204, 204]
    assert let_in.status == 204


async def test_ten_thousand_idle_connections_hold_nobody_up() -> None:
    """Requests are answered in between, and the clocks cost next to nothing."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(MANY, (soft - 200) // 2)
    loop = asyncio.get_running_loop()
    async with served_here(hello(), bounds=Bounds(head_timeout=60), lifespan="off") as port:
        socks = []
        for start_at in range(0, many, 500):
            batch = [socket.socket() for _ in range(min(500, many - start_at))]
            for sock in batch:
                sock.setblocking(False)
            await asyncio.gather(*(loop.sock_connect(s, ("127.0.0.1", port)) for s in batch))
            socks += batch
        spent = []
        async with raw_client(port=port) as client:
            for _ in range(20):
                began = loop.time()
                client.send(GET)
                answer = await client.answer()
                spent.append(loop.time() - began)
                await asyncio.sleep(TICK / 10)
        for sock in socks:
            sock.close()

    assert answer.status == 200
    assert sorted(spent)[10] < 0.1


def a_socket(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    return socket.socket(family)


OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_SNDBUF),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
]


def test_a_peer_that_vanishes_is_reported_by_the_kernel() -> None:
    """Probes when it is silent, and a limit to what stays unacknowledged."""
    with a_socket() as sock:
        set_options(sock, Bounds())
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 60_000
        idle = sock.getsockopt(tcp, socket.TCP_KEEPIDLE)
        probes = sock.getsockopt(tcp, socket.TCP_KEEPCNT)
        assert idle + probes * sock.getsockopt(tcp, socket.TCP_KEEPINTVL) <= 60


@pytest.mark.parametrize(("write", "kernel"), [(30.0, 60_000), (300.0, 300_000), (float("inf"), 0)])
def test_the_kernel_is_never_less_patient_than_the_write_clock(write: float, kernel: int) -> None:
    """It would cut a reader that stands still on its own account."""
    with a_socket() as sock:
        set_options(sock, Bounds(write_timeout=write))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == kernel


def test_the_kernel_keeps_little_for_a_reader() -> None:
    """It would take 4 MiB; it doubles what it is told."""
    with a_socket() as sock:
        set_options(sock, Bounds())
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 512 * 1024


def test_a_unix_socket_has_no_such_options() -> None:
    """And needs none."""
    with a_socket(socket.AF_UNIX) as sock:
        set_options(sock, Bounds())


def test_a_connection_inherits_the_options_of_the_listening_socket() -> None:
    """So they are set once, and cost no connection a system call."""
    with a_socket() as listening, a_socket() as client:
        set_options(listening, Bounds())
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            for level, option in OPTIONS:
                assert accepted.getsockopt(level, option) == listening.getsockopt(level, option)


async def test_a_worker_sets_the_options_on_the_socket_it_is_given(tmp_path: Path) -> None:
    """The socket is shared with the supervisor, so its options are seen from here."""
    ours, theirs = socket.socketpair()
    with a_socket() as listening, ours, theirs:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        handed = [listening.fileno(), theirs.fileno()]
        command = [sys.executable, "-m", "llmproxy.server.worker", "--name", "alone"]
        command += ["--listen", str(handed[0]), "--lifeline", str(handed[1])]
        command += ["--board", str(tmp_path), "--index", "0"]
        environment = {**os.environ, "LLMPROXY_UPSTREAMS": "http://127.0.0.1:1"}
        worker = await asyncio.create_subprocess_exec(*command, pass_fds=handed, env=environment)
        ours.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(ours, 1)
        worker.terminate()
        code = await worker.wait()

        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert code == 0


def test_what_the_kernel_has_not_delivered_can_be_asked() -> None:
    """And a socket that is closed has nothing."""
    here, there = socket.socketpair()
    with here, there:
        assert unacknowledged(here) == 0
        here.send(b"x" * 1000)
        assert unacknowledged(here) >= 1000
        there.recv(1000)
        assert unacknowledged(here) == 0
    assert unacknowledged(here) == 0


def test_an_address_is_written_as_asgi_has_it() -> None:
    """Two parts for IPv6 too; a path for a unix socket that has one."""
    assert address(("::1", 80, 0, 0)) == ("::1", 80)
    assert address("/run/x.sock") == ("/run/x.sock", None)
    assert address("") is None
