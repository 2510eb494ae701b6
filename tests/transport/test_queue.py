"""A limit on connections, and the queue in front of it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmproxy.errors import Overloaded, UpstreamBroken, UpstreamError
from llmproxy.records import Upstream
from llmproxy.transport import Outgoing, Transport
from tests.support.calls import (
    HOST,
    Pieces,
    ask,
    body_of,
    eventually,
    fetch,
    post,
    settle,
)
from tests.support.ports import free_port
from tests.support.upstream import Exchange, ScriptedServer, json_answer, scripted
from tests.transport.conftest import Connect, only_http1

EXACT = "httpcore's pool keeps another order, and loses places when those who wait are cancelled"
NOTHING = {"open": 0, "idle": 0, "waiting": 0}


def numbered(number: int) -> Outgoing:
    return Outgoing(b"GET", b"/%d" % number, HOST)


class Gate:
    """A server that answers when the test lets it; requests are known by their targets."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Event] = {}
        self.order: list[bytes] = []

    async def script(self, exchange: Exchange) -> None:
        request = await exchange.request()
        self.order.append(request.target)
        opened = self.waiting[request.target] = asyncio.Event()
        await opened.wait()
        exchange.json({})

    async def answer(self, target: bytes) -> None:
        """Wait for a request, and answer it."""
        await eventually(lambda: target in self.waiting, f"{target!r} arrived")
        self.waiting[target].set()


@asynccontextmanager
async def gated() -> AsyncIterator[tuple[Gate, ScriptedServer]]:
    gate = Gate()
    async with scripted(gate.script) as server:
        yield gate, server


async def in_line(transport: Transport, numbers: range) -> dict[int, asyncio.Task[object]]:
    """Let calls arrive one after the other, and wait for their answers without a clock."""
    tasks: dict[int, asyncio.Task[object]] = {}
    for number in numbers:
        tasks[number] = asyncio.create_task(fetch(transport, numbered(number), answer=0))
        await settle()
    return tasks


async def test_no_more_connections_than_allowed(connect: Connect) -> None:
    """The others wait, and all are answered."""
    most = 0

    async def script(exchange: Exchange) -> None:
        nonlocal most
        await exchange.request()
        most = max(most, server.open)
        await settle()
        exchange.json({})

    async with scripted(script) as server:
        transport = connect(server, connections=3)
        answers = await asyncio.gather(*(fetch(transport) for _ in range(50)))

    assert answers == [(200, b"{}")] * 50
    assert most == 3


async def test_no_limit_is_no_limit(connect: Connect) -> None:
    """0 opens as many as are asked for."""
    async with gated() as (gate, server):
        tasks = await in_line(connect(server, connections=0), range(20))
        for number in range(20):
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*tasks.values())

    assert server.accepted == 20


@only_http1(EXACT)
async def test_the_queue_keeps_its_order(connect: Connect) -> None:
    """Who came first is served first, whoever it was that made room."""
    async with gated() as (gate, server):
        transport = connect(server, connections=2)
        tasks = await in_line(transport, range(8))
        assert transport.statistics() == {"open": 2, "idle": 0, "waiting": 6}
        await gate.answer(b"/1")
        for number in [2, 0, 4, 3, 5, 6, 7]:
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*tasks.values())
        await settle()

        assert gate.order == [b"/%d" % number for number in range(8)]
        assert transport.statistics() == {"open": 2, "idle": 2, "waiting": 0}


@only_http1(EXACT)
async def test_a_newcomer_does_not_overtake(connect: Connect) -> None:
    """The connection that has just become free belongs to the one who waits for it."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1)
        tasks = await in_line(transport, range(2))
        tasks[0].add_done_callback(
            lambda _: tasks.update({2: asyncio.ensure_future(fetch(transport, numbered(2)))})
        )
        for number in range(3):
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*tasks.values())

    assert gate.order == [b"/0", b"/1", b"/2"]


@only_http1(EXACT)
async def test_an_upload_keeps_its_place(connect: Connect) -> None:
    """That it wants a fresh connection does not send it to the end of the line."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1)
        first = await in_line(transport, range(1))
        upload = Outgoing(b"POST", b"/upload", HOST, Pieces(b"one"))
        uploading = asyncio.create_task(fetch(transport, upload))
        await settle()
        later = await in_line(transport, range(1, 4))
        await gate.answer(b"/0")
        for turn in range(2, 6):
            await eventually(lambda turns=turn: len(gate.order) == turns, f"turn {turn} came")  # type: ignore[misc]  # bound by its default
            gate.waiting[gate.order[-1]].set()
        await asyncio.gather(uploading, *first.values(), *later.values())

    assert gate.order[:2] == [b"/0", b"/upload"]


@only_http1(EXACT)
async def test_an_upload_makes_room_for_itself(connect: Connect) -> None:
    """Where every place is held by an idle connection, one of them goes."""
    async with scripted(json_answer({})) as server:
        transport = connect(server, connections=1)
        await fetch(transport)
        await settle()
        call = await ask(transport, post(Pieces(b"one")))

        assert not call.reused
        assert transport.statistics()["open"] == 1
        assert await body_of(call) == b"{}"
        await server.exchanges[0].closed()


async def test_a_full_queue_refuses_at_once(connect: Connect) -> None:
    """And says when to come back; those who wait are not touched."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1, queue=2)
        tasks = await in_line(transport, range(3))
        with pytest.raises(Overloaded) as refusal:
            await ask(transport)
        for number in range(3):
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*tasks.values())

    assert any(name == b"retry-after" for name, _ in refusal.value.headers)
    assert sorted(gate.order) == [b"/0", b"/1", b"/2"]


async def test_nobody_waits_for_ever(connect: Connect) -> None:
    """The queue has a clock, and who leaves it leaves no trace."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1, queue_timeout=0.05)
        tasks = await in_line(transport, range(1))
        with pytest.raises(Overloaded):
            await ask(transport)
        assert transport.statistics()["waiting"] == 0
        await gate.answer(b"/0")
        await asyncio.gather(*tasks.values())
        await settle()
        tasks = await in_line(transport, range(1, 2))
        await gate.answer(b"/1")

        assert await tasks[1] == (200, b"{}")
    assert gate.order == [b"/0", b"/1"]


@only_http1(EXACT)
async def test_who_leaves_the_queue_is_passed_over(connect: Connect) -> None:
    """The place goes to the next one who is still there."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1)
        tasks = await in_line(transport, range(5))
        for number in (1, 3):
            tasks.pop(number).cancel()
        await settle()
        assert transport.statistics()["waiting"] == 2
        for number in (0, 2, 4):
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*tasks.values())

    assert gate.order == [b"/0", b"/2", b"/4"]


@only_http1(EXACT)
@pytest.mark.clock
async def test_a_place_that_is_given_to_one_who_leaves_is_not_lost(connect: Connect) -> None:
    """Cancelled between the moment in which it was given and the one in which it was taken."""
    loop = asyncio.get_running_loop()

    async with gated() as (gate, server):
        transport = connect(server, connections=1)
        tasks = await in_line(transport, range(3))

        def strike() -> None:
            # asyncio runs what a clock has set off right after the sockets were read, and
            # before it wakes whom the reading has woken.
            if transport.statistics()["waiting"] == 1:
                tasks[1].cancel()
            else:
                loop.call_later(0, strike)

        loop.call_later(0, strike)
        await gate.answer(b"/0")
        await gate.answer(b"/2")
        await asyncio.wait(tasks.values())
        await settle()

        assert tasks[1].cancelled()
        assert tasks[2].result() == (200, b"{}")
        assert gate.order == [b"/0", b"/2"]
        assert transport.statistics() == {"open": 1, "idle": 1, "waiting": 0}


@pytest.mark.parametrize("how", ["close", "break"])
@only_http1(EXACT)
async def test_an_answer_that_is_not_finished_frees_its_place(connect: Connect, how: str) -> None:
    """Left or broken: the next in line gets a new connection."""
    leave = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if exchange.connection > 1:
            exchange.json({})
            return
        exchange.begin()
        exchange.chunk(b"one")
        await leave.wait()
        if how == "break":
            exchange.reset()
        else:
            await exchange.closed()

    async with scripted(script) as server:
        transport = connect(server, connections=1)
        call = await ask(transport)
        await call.read(0)
        waiting = asyncio.create_task(fetch(transport))
        await settle()
        assert transport.statistics()["waiting"] == 1
        leave.set()
        if how == "close":
            call.close()
        else:
            with pytest.raises(UpstreamBroken):
                await call.read(0)

        assert await waiting == (200, b"{}")


@only_http1(EXACT)
async def test_a_connection_that_cannot_be_made_frees_its_place(connect: Connect) -> None:
    """Everybody learns it in turn; nobody waits for what will not come."""
    transport = connect(Upstream("engine", "http", "127.0.0.1", free_port()), connections=1)

    results = await asyncio.gather(*(ask(transport) for _ in range(20)), return_exceptions=True)

    assert all(isinstance(result, UpstreamError) for result in results)
    assert transport.statistics() == NOTHING


@only_http1(EXACT)
async def test_closing_the_transport_sends_the_queue_home(connect: Connect) -> None:
    """At once, in words that fit."""
    async with gated() as (gate, server):
        transport = connect(server, connections=1)
        tasks = await in_line(transport, range(3))
        await eventually(lambda: len(gate.order) == 1, "the first arrived")
        await transport.aclose()
        results = await asyncio.gather(tasks[1], tasks[2], return_exceptions=True)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])

    assert [type(result) for result in results] == [Overloaded, Overloaded]


@pytest.mark.parametrize("seed", range(4))
@only_http1(EXACT)
async def test_a_hundred_thousand_cancelled_waiters_cost_nothing(
    connect: Connect, seed: int
) -> None:
    """They come and go in front of two busy connections, and not one place is lost."""
    rng = random.Random(seed)
    waiters = 100_000 // 4

    async with gated() as (gate, server):
        transport = connect(server, connections=2, queue=2_000)
        held = await in_line(transport, range(2))
        await eventually(lambda: len(gate.order) == 2, "both connections are busy")
        for _ in range(waiters // 1_000):
            crowd = [asyncio.create_task(ask(transport)) for _ in range(1_000)]
            await asyncio.sleep(0)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            rng.shuffle(crowd)
            for waiter in crowd:
                waiter.cancel()
                if rng.random() < 0.01:
                    await asyncio.sleep(0)
            await asyncio.wait(crowd)
            assert all(waiter.cancelled() for waiter in crowd)

        assert transport.statistics() == {"open": 2, "idle": 0, "waiting": 0}
        for number in range(2):
            await gate.answer(b"/%d" % number)
        await asyncio.gather(*held.values())
        await settle()
        assert transport.statistics() == {"open": 2, "idle": 2, "waiting": 0}
        assert server.accepted == 2


@pytest.mark.parametrize("seed", range(4))
@only_http1(EXACT)
async def test_random_ends_cost_nothing(connect: Connect, seed: int) -> None:
    """Finished, left, cancelled, broken, refused, in every phase: every place comes back."""
    rng = random.Random(seed)

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        fate = rng.random()
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        if fate < 0.1:
            exchange.reset()
        elif fate < 0.2:
            exchange.close()
        elif fate < 0.6:
            exchange.json({})
        else:
            exchange.begin()
            exchange.chunk(b"one")
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            if fate < 0.7:
                exchange.reset()
            else:
                exchange.chunk(b"two")
                exchange.end()

    async def caller(transport: Transport) -> None:
        outgoing = post(Pieces(b"one", b"two")) if rng.random() < 0.2 else post()
        try:
            call = await ask(transport, outgoing)
        except (UpstreamError, Overloaded):
            return
        try:
            while await call.read(0):
                if rng.random() < 0.2:
                    break
        except UpstreamError:
            pass
        finally:
            call.close()

    async with scripted(script) as server:
        transport = connect(server, connections=4, queue=40)
        for _ in range(60):
            crowd = [asyncio.create_task(caller(transport)) for _ in range(30)]
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            for task in rng.sample(crowd, 10):
                task.cancel()
            await asyncio.wait(crowd)
            for task in crowd:
                assert task.cancelled() or task.exception() is None
        await settle()

        statistics = transport.statistics()
        assert statistics["waiting"] == 0
        assert statistics["open"] == statistics["idle"] <= 4
        server.script = json_answer({})
        answers = await asyncio.gather(*(fetch(transport) for _ in range(8)))
        assert answers == [(200, b"{}")] * 8
