"""Requests with a body so large that it is handed over in steps."""

import asyncio
import os

import pytest

from llmproxy.errors import UpstreamTimeout
from llmproxy.transport import Outgoing
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.http1.request_writer import AT_ONCE
from tests.support.calls import ask, fetch, post, settle
from tests.support.upstream import Exchange, json_answer, scripted
from tests.transport.conftest import Connect, only_http1

STEPS = 5


class Socket(asyncio.Transport):
    """Notes what it is given, and in which turn of the loop."""

    def __init__(self, turns: list[int]) -> None:
        super().__init__()
        self.turns = turns
        self.given: list[tuple[int, bytes]] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.given.append((len(self.turns), bytes(data)))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Owner:
    """A pool that keeps nothing."""

    def returned(self, connection: Connection) -> None:
        """Nothing is kept here."""

    def lost(self, connection: Connection) -> None:
        """Nothing is kept here."""


class Asked:
    """A connection that was asked something large."""

    def __init__(self, turns: list[int], body: bytes) -> None:
        self.socket = Socket(turns)
        self.connection = Connection("gpu1", Owner(), asyncio.get_running_loop())
        self.connection.connection_made(self.socket)
        self.call = self.connection.ask(Outgoing(b"POST", b"/", [], body))

    @property
    def steps(self) -> list[tuple[int, bytes]]:
        return self.socket.given[1:]  # before them goes the head


async def pass_turns(turns: list[int], count: int) -> None:
    for _ in range(count):
        turns.append(0)
        await asyncio.sleep(0)


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_a_large_body_arrives(connect: Connect, more: int) -> None:
    """All of it, in its order, and the connection serves on."""
    body = os.urandom(STEPS * AT_ONCE + more)
    async with scripted(json_answer({})) as server:
        transport = connect(server)
        answers = [await fetch(transport, post(body)), await fetch(transport, post(b"{}"))]

        assert answers == [(200, b"{}")] * 2
        assert [request.body for request in server.requests] == [body, b"{}"]


async def test_two_of_them_are_not_handed_over_in_the_same_turn() -> None:
    """A step of one is all that a turn of the loop has; the first goes out in a later one."""
    turns: list[int] = []
    bodies = [os.urandom(STEPS * AT_ONCE) for _ in range(3)]
    asked = [Asked(turns, body) for body in bodies]
    await pass_turns(turns, 10 * STEPS)

    assert [b"".join(step for _, step in each.steps) for each in asked] == bodies
    taken = [turn for each in asked for turn, _ in each.steps]
    assert len(set(taken)) == len(taken) == 3 * STEPS


async def test_nothing_is_handed_over_that_the_server_does_not_take() -> None:
    """The event loop would keep it, and a step would no longer be one."""
    turns: list[int] = []
    body = os.urandom(STEPS * AT_ONCE)
    asked = Asked(turns, body)
    await pass_turns(turns, 4)
    asked.connection.pause_writing()
    before = len(asked.steps)
    await pass_turns(turns, 10)
    assert len(asked.steps) == before < STEPS
    assert asked.connection.unsent == (STEPS - before) * AT_ONCE

    asked.connection.resume_writing()
    await pass_turns(turns, 4 * STEPS)
    assert b"".join(step for _, step in asked.steps) == body
    assert asked.connection.unsent == 0


async def test_a_call_that_was_given_up_is_not_written_on() -> None:
    """Its connection is closed, and half a request stays half."""
    turns: list[int] = []
    asked = Asked(turns, os.urandom(STEPS * AT_ONCE))
    await pass_turns(turns, 4)
    asked.call.close()
    before = len(asked.steps)
    await pass_turns(turns, 10)

    assert 0 < before == len(asked.steps) < STEPS


@only_http1("what httpx does with it is its own affair")
async def test_an_answer_that_comes_too_early_ends_the_connection(connect: Connect) -> None:
    """It is the answer; but the rest of the request must not be taken for another one."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        exchange.stop_reading()
        exchange.json({"error": "too large"}, status=b"413 Content Too Large")
        await exchange.closed()

    async with scripted(script, receive_buffer=64 * 1024) as server:
        transport = connect(server)
        status, _ = await fetch(transport, post(b"x" * (32 * AT_ONCE)))
        await settle()

        assert status == 413
        assert transport.statistics()["open"] == 0


@only_http1("httpx has a clock of its own for writing")
async def test_a_server_that_takes_no_more_is_given_up(connect: Connect) -> None:
    """The clock of the answer begins anew only as long as something goes out."""

    async def script(exchange: Exchange) -> None:
        exchange.stop_reading()
        await exchange.closed()

    async with scripted(script, receive_buffer=64 * 1024) as server:
        with pytest.raises(UpstreamTimeout):
            await ask(connect(server), post(b"x" * (32 * AT_ONCE)), answer=0.1)
