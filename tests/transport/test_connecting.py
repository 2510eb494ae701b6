"""From a name to a connection: refusals, several addresses, names that change."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmproxy.errors import UpstreamTimeout, UpstreamUnreachable
from llmproxy.records import Upstream
from llmproxy.transport.addresses import Addresses
from llmproxy.transport.http1 import Http1Transport
from llmproxy.transport.limits import PoolLimits
from tests.support.calls import ask, eventually, fetch, settle
from tests.support.clock import pass_time
from tests.support.ports import free_port
from tests.support.upstream import Exchange, json_answer, scripted
from tests.support.wire import patience
from tests.transport.conftest import Connect
from tests.transport.test_clocks import full_backlog

NAMED = Upstream("engine", "http", "engine.test", 8000)

Address = tuple[str, int]


class Names:
    """A resolver whose answers the test changes."""

    def __init__(self, *addresses: Address) -> None:
        self.addresses: Sequence[Address] = addresses
        self.failure: OSError | None = None
        self.asked: list[Address] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append((host, port))
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return self.addresses


@asynccontextmanager
async def named(
    names: Names, upstream: Upstream = NAMED, **limits: float
) -> AsyncIterator[Http1Transport]:
    """Connect by a name. Only our own transport lets its resolver be chosen."""
    transport = Http1Transport(upstream, PoolLimits(**limits), resolve=names)  # type: ignore[arg-type]  # counts and seconds
    try:
        yield transport
    finally:
        await transport.aclose()


async def test_a_refused_connection(connect: Connect) -> None:
    """Nothing was sent, so another server may be tried."""
    transport = connect(Upstream("engine", "http", "127.0.0.1", free_port()))
    with pytest.raises(UpstreamUnreachable) as refusal:
        await ask(transport)

    assert refusal.value.retryable
    assert "127.0.0.1" not in refusal.value.detail
    assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_a_refusal_is_not_remembered(connect: Connect) -> None:
    """A server that has come up is found by the next call."""
    port = free_port()
    transport = connect(Upstream("engine", "http", "127.0.0.1", port))
    with pytest.raises(UpstreamUnreachable):
        await ask(transport)

    async with scripted(json_answer({}), port=port):
        assert await fetch(transport) == (200, b"{}")


async def test_an_address_of_the_sixth_version(connect: Connect) -> None:
    """It stands in brackets where it is written, and nowhere else."""
    async with scripted(json_answer({}), host="::1") as server:
        assert server.upstream.authority == f"[::1]:{server.upstream.port}"
        assert await fetch(connect(server)) == (200, b"{}")


async def test_a_unix_socket(connect: Connect, tmp_path: Path) -> None:
    """No address, no port, and no other difference."""
    async with scripted(json_answer({}), path=tmp_path / "engine.sock") as server:
        transport = connect(server)
        first = await ask(transport)
        first.close()

        assert await fetch(transport) == (200, b"{}")


async def test_a_unix_socket_that_is_not_there(connect: Connect, tmp_path: Path) -> None:
    """Its path is as private as an address."""
    transport = connect(Upstream("engine", "unix", "", 0, path=str(tmp_path / "none.sock")))
    with pytest.raises(UpstreamUnreachable) as refusal:
        await ask(transport)

    assert "none.sock" not in refusal.value.detail


async def test_a_name_is_resolved() -> None:
    """With its port, and the connection goes where it leads."""
    async with scripted(json_answer({})) as server:
        names = Names(server.address)
        async with named(names) as transport:
            assert await fetch(transport) == (200, b"{}")

    assert names.asked == [("engine.test", 8000)]


async def test_an_address_is_no_name() -> None:
    """Nobody is asked about it."""
    async with scripted(json_answer({})) as server:
        names = Names()
        async with named(names, server.upstream) as transport:
            assert await fetch(transport) == (200, b"{}")

    assert names.asked == []


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ],
    ids=["unknown", "for_now"],
)
async def test_a_name_that_cannot_be_resolved(failure: OSError) -> None:
    """It is a server that cannot be reached; the name stays private."""
    names = Names()
    names.failure = failure

    async with named(names) as transport:
        with pytest.raises(UpstreamUnreachable) as refusal:
            await ask(transport)

        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}
    assert "engine.test" not in refusal.value.detail


async def test_a_name_without_an_address() -> None:
    """The same, although nothing has failed."""
    async with named(Names()) as transport:
        with pytest.raises(UpstreamUnreachable):
            await ask(transport)


async def test_a_name_that_cannot_be_one(connect: Connect) -> None:
    """The system's resolver refuses it in its own way; it is unreachable like any other."""
    transport = connect(Upstream("engine", "http", "x" * 64 + ".test", 80))

    with pytest.raises(UpstreamUnreachable):
        await ask(transport)


async def test_a_resolver_that_does_not_answer() -> None:
    """Resolving belongs to connecting and goes by its clock."""

    async def silent(host: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    transport = Http1Transport(NAMED, PoolLimits(), resolve=silent)
    async with patience("the name was given up", 5.0):
        with pytest.raises(UpstreamTimeout):
            await ask(transport, connect=0.05)

    assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    """At once, and the caller does not hear of it."""
    async with scripted(json_answer({})) as server:
        names = Names(("127.0.0.1", free_port()), server.address)
        async with named(names) as transport:
            assert await fetch(transport) == (200, b"{}")
            assert transport.statistics()["open"] == 1

    assert server.accepted == 1


async def test_the_next_address_is_tried_when_one_is_silent() -> None:
    """It gets a head start and no more, well within the clock."""
    async with scripted(json_answer({})) as server, full_backlog() as blackhole:
        names = Names((blackhole.host, blackhole.port), server.address)
        async with named(names) as transport, patience("the second was tried", 3.0):
            call = await ask(transport, connect=3.0)

            assert call.status == 200


async def test_the_last_address_may_take_longer_than_the_first_to_fail() -> None:
    """A silent address behind a refusing one is waited for until the clock ends it."""
    async with full_backlog() as blackhole:
        names = Names(("127.0.0.1", free_port()), (blackhole.host, blackhole.port))
        async with named(names) as transport:
            with pytest.raises(UpstreamTimeout):
                await ask(transport, connect=0.2)

            assert transport.statistics()["open"] == 0


async def test_every_address_may_refuse() -> None:
    """Then, and only then, is the server out of reach."""
    names = Names(*[("127.0.0.1", free_port()) for _ in range(3)])

    async with named(names) as transport:
        with pytest.raises(UpstreamUnreachable):
            await ask(transport)

        assert transport.statistics()["open"] == 0


async def test_addresses_are_tried_in_their_order() -> None:
    """The system has put them in it; the second server sees nobody."""
    async with scripted(json_answer(1)) as first, scripted(json_answer(2)) as second:
        names = Names(first.address, second.address)
        async with named(names) as transport:
            assert await fetch(transport) == (200, b"1")
            await settle()

    assert (first.accepted, second.accepted) == (1, 0)


@pytest.mark.clock
async def test_a_resolved_name_is_believed_for_a_while() -> None:
    """A burst of connections asks once."""
    held: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        held.append(exchange)
        await exchange.closed()

    async with scripted(script) as server:
        names = Names(server.address)
        async with named(names) as transport:
            await settle()
            calls = [asyncio.create_task(ask(transport)) for _ in range(1)]
            await eventually(lambda: len(held) == 1, "the first call arrived")
            calls += [asyncio.create_task(ask(transport)) for _ in range(9)]
            await eventually(lambda: len(held) == 10, "every call arrived")
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    assert len(names.asked) == 1


@pytest.mark.clock
async def test_a_change_of_address_is_noticed_within_a_minute() -> None:
    """Constant traffic, no failure: the new server is in use 60 seconds later at most."""
    async with scripted(json_answer("old")) as old, scripted(json_answer("new")) as new:
        names = Names(old.address)
        async with named(names) as transport:
            await fetch(transport)
            names.addresses = [new.address]
            seconds = 0
            while await fetch(transport) != (200, b'"new"'):
                await pass_time(1.0)
                seconds += 1

    assert 0 < seconds <= 60
    assert old.accepted + new.accepted <= 3


@pytest.mark.clock
async def test_a_resolver_that_fails_for_a_moment_does_not_matter_to_what_is_open() -> None:
    """Only a new connection needs the name."""
    async with scripted(json_answer({})) as server:
        names = Names(server.address)
        async with named(names) as transport:
            await fetch(transport)
            await pass_time(3.0)
            names.failure = socket.gaierror(socket.EAI_AGAIN, "later")

            assert await fetch(transport) == (200, b"{}")


FOUND = replace(NAMED, found=True)
NEVER_CALLED = [
    "169.254.169.254", "fe80::1", "fe80::1%lo", "::ffff:169.254.0.1", "100.100.100.200",
    "fd00:ec2::254", "0.0.0.0", "::", "::ffff:0.0.0.0",
]  # fmt: skip


async def test_a_server_that_was_found_leads_to_no_address_that_is_never_called() -> None:
    """Whoever may name a server could else have us ask the cloud for its credentials."""
    astray = ("169.254.169.254", 80)
    async with (
        scripted(json_answer({})) as server,
        named(Names(astray, server.address), FOUND) as transport,
    ):
        assert await fetch(transport) == (200, b"{}")
    async with named(Names(astray), FOUND) as transport:
        with pytest.raises(UpstreamUnreachable):
            await ask(transport)


@pytest.mark.parametrize("address", NEVER_CALLED)
async def test_what_the_operator_has_named_leads_where_it_leads(address: str) -> None:
    """A machine on the same cable has no other address."""
    names = Names((address, 80), ("10.0.0.1", 80))

    assert await Addresses("engine.test", 80, names).get() == ((address, 80), ("10.0.0.1", 80))
    assert await Addresses("engine.test", 80, names, found=True).get() == [("10.0.0.1", 80)]
