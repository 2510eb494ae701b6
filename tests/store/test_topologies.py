"""Redis by TLS, as a cluster and behind Sentinel: real ones, as small as they can be."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
import redis

from llmproxy.store.interface import Kind, Meter, Store
from llmproxy.store.redis import RedisStore
from llmproxy.store.urls import place
from tests.store.waiting import until
from tests.support.ports import free_port, free_ports
from tests.support.redis_server import RedisServer, redis_binary, redis_running
from tests.support.tls import Authority

METERS = [
    Meter("slots", Kind.HELD, 3),
    Meter("rate", Kind.RATE, 3, 86400),
    Meter("tokens", Kind.RATE, 3, 86400, provisional=True),
    Meter("money", Kind.SPENT, 3, window="day"),
]
SLOTS = 16384


async def works(store: Store) -> bool:
    """Do one of everything."""
    grant = await store.take([(meter, 1) for meter in METERS])
    await store.settle([(meter, 1, 0) for meter in METERS], grant.owner)
    await store.put("a{b}", b"1")
    await store.put("a{c}", b"2")
    await store.append("list", b"entry", keep=1)
    assert await store.names("a") == ["a{b}", "a{c}"]
    assert await store.get("a{c}") == b"2"
    assert await store.entries("list", last=5) == [b"entry"]
    return grant.granted


async def test_by_tls(authority: Authority, tmp_path: Path) -> None:
    """The server's certificate is checked, and ours is shown."""
    port = free_port()
    certificate = authority.ca.issue_cert("localhost")
    both, ca = tmp_path / "both.pem", tmp_path / "ca.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(both))
    authority.ca.cert_pem.write_to_path(str(ca))
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(both),
        "tls-key-file": str(both),
        "tls-ca-cert-file": str(ca),
    }
    with redis_running(options):
        store = RedisStore(place(f"rediss://localhost:{port}/0?ca={ca}&cert={both}"), patience=2)
        stranger = RedisStore(place(f"rediss://localhost:{port}/0?cert={both}"), patience=2)
        try:
            assert await works(store)
            with pytest.raises(Exception, match=r"^$"):
                await stranger.take([])
        finally:
            await asyncio.gather(store.aclose(), stranger.aclose())


@pytest.fixture
def cluster() -> Iterator[list[RedisServer]]:
    """Three servers that share the slots."""
    options = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "1000",
        "cluster-require-full-coverage": "no",
        "save": "",
    }
    with ExitStack() as stack:
        nodes = []
        for bus in free_ports(3):
            each = {**options, "cluster-port": str(bus)}
            nodes.append(stack.enter_context(redis_running(each)))
        for number, node in enumerate(nodes):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            assert node.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last)) == "+OK"
            bus_port = node.options["cluster-port"]
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus_port)
        yield nodes


async def test_in_a_cluster(cluster: list[RedisServer]) -> None:
    """All of our keys are in one slot; when that moves, we follow."""
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    store = RedisStore(place(f"redis+cluster://{hosts}"), patience=2)
    try:
        await until(lambda: works(store))
        (home,) = [node for node in cluster if node.ask("DBSIZE") != ":0"]

        assert store.events["garbage"] == 0
        await until(lambda: asyncio.to_thread(all_known, cluster))
        await asyncio.to_thread(move_our_slot, cluster, home)
        await until(lambda: works(store))
        assert store.events["lost"] == 0
    finally:
        await store.aclose()


def all_known(nodes: list[RedisServer]) -> bool:
    """Tell whether every server has heard of every other: they pass it on in their own time."""
    names = [node_id(node) for node in nodes]
    for node in nodes:
        with redis.Redis(unix_socket_path=str(node.socket)) as client:
            known = str(client.execute_command("CLUSTER NODES"))
        if not all(name in known for name in names):
            return False
    return True


def move_our_slot(cluster: list[RedisServer], home: RedisServer) -> None:
    """Give the slot to another server, as an operator would who does not need the data."""
    slot = home.ask("CLUSTER", "KEYSLOT", "llmproxy:1:{s}")[1:]
    target = next(node for node in cluster if node is not home)
    name = node_id(target)
    home.ask("FLUSHALL")
    for node in (target, *(each for each in cluster if each is not target)):
        assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", name) == "+OK"


def node_id(node: RedisServer) -> str:
    """Return the name that the cluster has for it."""
    with redis.Redis(unix_socket_path=str(node.socket)) as client:
        return str(client.execute_command("CLUSTER MYID"), "ascii")


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[int, RedisServer, RedisServer]]:
    """A server, a replica of it, and a Sentinel who watches them."""
    with ExitStack() as stack:
        master = stack.enter_context(redis_running())
        replica = stack.enter_context(redis_running({"replicaof": f"127.0.0.1 {master.port}"}))
        port = free_port()
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 2000\n"
        )
        process = Popen([redis_binary(), str(config), "--sentinel"], stdout=DEVNULL, stderr=DEVNULL)
        try:
            yield port, master, replica
        finally:
            process.kill()
            process.wait()


async def test_behind_sentinel(sentinel: tuple[int, RedisServer, RedisServer]) -> None:
    """The master is found, and the new one when the old one dies."""
    port, master, replica = sentinel
    store = RedisStore(place(f"redis+sentinel://127.0.0.1:{port}/main"), patience=2)
    try:
        await until(lambda: works(store))
        assert master.ask("EXISTS", "llmproxy:1:{s}:k:a{b}") == ":1"

        # What Sentinel would do at a failover, but now.
        assert replica.ask("REPLICAOF", "NO", "ONE") == "+OK"
        replica.ask("FLUSHALL")
        await asyncio.to_thread(master.kill)
        tell_sentinel(port, replica.port)
        await until(lambda: works(store))
        assert replica.ask("EXISTS", "llmproxy:1:{s}:k:a{b}") == ":1"
    finally:
        await store.aclose()


def tell_sentinel(port: int, master: int) -> None:
    """Have it watch another server under the same name."""
    with redis.Redis(port=port) as client:
        client.execute_command("SENTINEL", "REMOVE", "main")
        client.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", master, 1)
