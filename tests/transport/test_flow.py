"""What comes in is handed on in the turn in which it comes, to whoever waits for it."""

import asyncio

import pytest

from llmproxy.errors import UpstreamBroken
from llmproxy.transport import Call
from llmproxy.transport.interface import Silence, Taker
from tests.support.calls import ask, eventually, settle
from tests.support.upstream import Exchange, scripted
from tests.support.wire import PATIENCE
from tests.transport.conftest import Connect, only_http1

pytestmark = only_http1("of httpx each piece has to be asked for")
FOR_EVER = float("inf")


class Sink:
    """Takes what it is given; says what it is told to."""

    def __init__(self, *, wants_more: bool = True) -> None:
        self.taken: list[bytes] = []
        self.wants_more = wants_more
        self.tasks: set[asyncio.Task[object] | None] = set()

    def __call__(self, chunk: bytes) -> bool:
        self.taken.append(chunk)
        self.tasks.add(asyncio.current_task())
        return self.wants_more

    async def has(self, count: int) -> None:
        """Wait until so many pieces were taken."""
        await eventually(lambda: len(self.taken) >= count, f"{count} pieces were handed on")


async def waiting(call: Call, sink: Taker, within: float, at_most: float) -> asyncio.Task[bool]:
    """Begin to hand on; returns once somebody waits for what comes."""
    flowing = asyncio.create_task(call.flow(sink, within, at_most))
    await settle()
    return flowing


async def begun(exchange: Exchange) -> None:
    """Answer with the head of a stream; the test says the rest."""
    await exchange.request()
    exchange.begin()
    await exchange.closed()


async def test_all_but_the_last_is_handed_on(connect: Connect) -> None:
    """In order, and no task is woken for it; the last is for whoever ends the answer."""
    sink = Sink()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, PATIENCE, FOR_EVER)
        exchange = await server.reached()
        for number in range(1, 4):
            exchange.chunk(b"%d" % number)
            await sink.has(number)
        exchange.send(b"4\r\nlast\r\n0\r\n\r\n")

        assert await flowing
        assert sink.taken == [b"1", b"2", b"3"]
        assert sink.tasks == {None}
        assert await call.read(PATIENCE) == b"last"
        assert call.over
        call.close()


async def test_what_is_there_already_is_for_read(connect: Connect) -> None:
    """Bytes that came while nobody waited come before those that are handed on."""
    sink = Sink()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        exchange = await server.reached()
        exchange.chunk(b"early")
        await exchange.sent()
        assert await call.read(PATIENCE) == b"early"
        exchange.chunk(b"first")
        await eventually(lambda: call._buffered > 0, "it has come")  # type: ignore[attr-defined]

        assert await call.flow(sink, PATIENCE, FOR_EVER)
        assert sink.taken == []
        assert await call.read(PATIENCE) == b"first"
        call.close()


async def test_one_who_wants_no_more_gets_no_more(connect: Connect) -> None:
    """What comes after is kept for `read`, also in the very turn in which it has said so."""
    sink = Sink(wants_more=False)
    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, PATIENCE, FOR_EVER)
        exchange = await server.reached()
        await settle()
        connection = call._connection  # type: ignore[attr-defined]
        connection.feed(b"1\r\na\r\n")
        connection.feed(b"1\r\nb\r\n")

        assert await flowing  # for there is something to read
        assert sink.taken == [b"a"]
        assert await call.read(PATIENCE) == b"b"
        exchange.chunk(b"c")
        assert not await call.flow(sink, PATIENCE, FOR_EVER)
        assert sink.taken == [b"a", b"c"]
        call.close()


async def test_an_error_of_the_sink_is_raised_where_one_waits(connect: Connect) -> None:
    """The connection of the server is not to blame, and knows nothing of it."""

    def sink(chunk: bytes) -> bool:
        raise LookupError(chunk)

    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, PATIENCE, FOR_EVER)
        exchange = await server.reached()
        exchange.chunk(b"a")
        with pytest.raises(LookupError):
            await flowing
        exchange.chunk(b"b")

        assert await call.read(PATIENCE) == b"b"
        call.close()


async def test_who_was_cancelled_is_given_nothing(connect: Connect) -> None:
    """Not even in the time between being cancelled and noticing it."""
    sink = Sink()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, PATIENCE, FOR_EVER)
        await settle()
        flowing.cancel()
        call._connection.feed(b"1\r\na\r\n")  # type: ignore[attr-defined]
        with pytest.raises(asyncio.CancelledError):
            await flowing

        assert sink.taken == []
        assert await call.read(PATIENCE) == b"a"
        call.close()


async def test_a_break_is_told_by_read(connect: Connect) -> None:
    """After everything that came before it."""
    sink = Sink()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, PATIENCE, FOR_EVER)
        exchange = await server.reached()
        exchange.chunk(b"a")
        await sink.has(1)
        exchange.reset()

        assert await flowing
        with pytest.raises(UpstreamBroken):
            await call.read(PATIENCE)
        call.close()


async def test_silence_is_counted_from_the_last_piece(connect: Connect) -> None:
    """Each piece begins the clock anew, though no timer is set for it."""
    sink = Sink()
    loop = asyncio.get_running_loop()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        began = loop.time()
        flowing = await waiting(call, sink, 0.5, FOR_EVER)
        exchange = await server.reached()
        for number in range(1, 4):
            await asyncio.sleep(0.2)
            exchange.chunk(b"a")
            await sink.has(number)
        with pytest.raises(Silence):
            await flowing
        waited = loop.time() - began

        exchange.chunk(b"late")
        assert await call.read(PATIENCE) == b"late"
        call.close()

    assert waited >= 1.09


async def test_the_whole_of_it_can_be_bounded(connect: Connect) -> None:
    """However often the clock of silence begins anew; to be over is no silence."""
    sink = Sink()
    async with scripted(begun) as server:
        call = await ask(connect(server))
        flowing = await waiting(call, sink, 0.8, 1.0)
        exchange = await server.reached()
        exchange.chunk(b"a")
        await sink.has(1)
        await asyncio.sleep(0.5)
        exchange.chunk(b"b")

        assert not await flowing
        assert sink.taken == [b"a", b"b"]
        call.close()


async def test_the_clock_of_one_call_is_not_that_of_the_next(connect: Connect) -> None:
    """The timer of a connection is left running: who is rung has its own deadline."""
    hold = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if exchange.number == 2:
            await hold.wait()
        exchange.json({})

    async with scripted(script) as server:
        transport = connect(server)
        first = await ask(transport, answer=0.1)
        assert await first.read(PATIENCE) == b"{}"
        second = asyncio.create_task(ask(transport, answer=PATIENCE))
        await eventually(lambda: len(server.requests) == 2, "it was asked again")
        await asyncio.sleep(0.2)  # beyond the deadline of the first
        assert not second.done()
        hold.set()
        call = await second

        assert server.accepted == 1
        assert await call.read(PATIENCE) == b"{}"
        call.close()
        first.close()
