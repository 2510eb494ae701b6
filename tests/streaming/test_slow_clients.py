"""A client that reads slowly slows its engine down, and one that stops is given up."""

import asyncio

import pytest

from tests.support.rig import proxied
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, scripted
from tests.support.wire import patience

EVENT = b"data: " + b"x" * 65_530 + b"\n\n"
KERNEL = 24 * 1024 * 1024  # bytes; more than the buffers of all four sockets can take


class Flood:
    """An engine that sends as fast as it is allowed to, and then `last`."""

    def __init__(self, events: int, last: bytes = b"") -> None:
        self.events = events
        self.last = last

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for _ in range(self.events):
            exchange.chunk(EVENT)
            while exchange.unsent:
                if exchange.ended:
                    return
                await asyncio.sleep(0.005)
        exchange.chunk(self.last)
        exchange.end()


async def standstill(exchange: Exchange) -> int:
    """Return what an engine has sent once nothing more is taken."""
    sent = -1
    while sent != exchange.sent_bytes:
        sent = exchange.sent_bytes
        await asyncio.sleep(0.15)
    return sent - exchange.unsent


async def test_an_engine_waits_for_a_client_that_does_not_read() -> None:
    """What nobody takes stays with the engine; when the client goes on, so does the stream."""
    events = 800
    async with (
        scripted(Flood(events, CHAT.whole)) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.keep_reads = False
        client.send(CHAT.request)
        await client.head()
        client.stop_reading()
        taken = await standstill(await engine.reached())
        client.go_on_reading()
        size, end = 0, b""
        async for frame in client.chunks():
            size += len(frame)
            end = (end + frame)[-len(CHAT.whole) :]

    assert taken < KERNEL
    assert size == events * len(EVENT) + len(CHAT.whole)
    assert end.endswith(CHAT.whole)
    assert client.complete


async def test_a_neighbour_is_not_slowed_down() -> None:
    """One who does not read holds nobody else up."""
    async with (
        scripted(Flood(800, CHAT.whole)) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as stuck,
        proxy.client() as neighbour,
    ):
        stuck.keep_reads = neighbour.keep_reads = False
        stuck.send(CHAT.request)
        await stuck.head()
        stuck.stop_reading()
        await standstill(await engine.reached())
        neighbour.send(CHAT.request)
        await neighbour.head()
        async for _ in neighbour.chunks():
            pass

    assert neighbour.complete


@pytest.mark.parametrize("comments", [0, 0.05], ids=["without_comments", "with_comments"])
async def test_a_client_that_stops_reading_is_given_up(comments: float) -> None:
    """The write clock runs out and the engine is let go, also while it floods us."""
    settings = {"timeout_write": 0.3, "keepalive_comments": comments}
    async with (
        scripted(Flood(100_000)) as engine,
        proxied(engine.upstream, **settings) as proxy,
        proxy.client() as client,
    ):
        client.send(CHAT.request)
        await client.head()
        client.stop_reading()
        line = await proxy.log.line()
        await engine.abandoned()
        client.go_on_reading()
        await client.closed()

    assert line["outcome"] == "client_gone"
    assert line["status"] == 499


async def test_the_time_for_the_whole_request_runs_while_its_client_stands_still() -> None:
    """The engine is free again when it is over, and not when the client is given up."""
    async with (
        scripted(Flood(2000)) as engine,
        proxied(engine.upstream, timeout_total=0.5, timeout_write=60.0) as proxy,
        proxy.client() as client,
    ):
        client.keep_reads = False
        client.send(CHAT.request)
        await client.head()
        client.stop_reading()
        async with patience("the engine was let go", 5.0):
            await engine.abandoned()
        line = await proxy.log.line()

    assert (line["outcome"], line["code"]) == ("stream_broken", "upstream_timeout")


async def test_a_client_that_reads_slowly_is_not_given_up() -> None:
    """The write clock asks for progress, not for speed."""
    settings = {"timeout_write": 0.3}
    async with (
        scripted(Flood(100_000)) as engine,
        proxied(engine.upstream, **settings) as proxy,
        proxy.client() as client,
    ):
        client.keep_reads = False
        client.send(CHAT.request)
        await client.head()
        for _ in range(12):
            await client.sip(4 * 1024 * 1024, 0.08)
        still_there = not client.ended and not proxy.log.lines

    assert still_there


async def test_a_client_that_waits_for_a_slow_engine_is_not_given_up() -> None:
    """Nothing is there for it to take: the write clock does not run."""

    async def thinks(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await asyncio.sleep(1)
        exchange.chunk(CHAT.whole.removeprefix(CHAT.events[0]))
        exchange.end()

    settings = {"timeout_write": 0.4, "keepalive_comments": 0}
    async with scripted(thinks) as engine, proxied(engine.upstream, **settings) as proxy:
        answer, complete = await proxy.asked(CHAT.request)

    assert answer.body == CHAT.whole
    assert complete
