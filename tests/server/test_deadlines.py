"""Whoever has a deadline is looked at when it has passed, and nobody has to wait for that."""

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.server.deadlines import PER_TURN, TICK, Deadlines
from llmproxy.server.sockets import FOR_EVER
from tests.support.clock import ClockLoop, pass_time

SLACK = 0.05  # seconds that the clock of a real loop goes on by itself
MANY = 5 * PER_TURN


@dataclass(eq=False)
class Client:
    """Notes when it was looked at; has no deadline then, if it is not to stay."""

    deadlines: Deadlines
    stays: bool = False
    deadline: float = FOR_EVER
    due: float = FOR_EVER
    looks: list[float] = field(default_factory=list)

    def set(self, deadline: float) -> None:
        self.deadline = deadline
        if deadline < self.due:
            self.deadlines.file(self)

    def look(self, now: float) -> None:
        assert now >= self.deadline
        self.looks.append(now)
        if not self.stays:
            self.deadline = FOR_EVER


class Faulty(Client):
    """Cannot be looked at."""

    def look(self, now: float) -> None:
        super().look(now)
        raise RuntimeError("a fault of ours")


MOVES = st.one_of(
    st.floats(-1, 40, allow_nan=False),
    st.just(FOR_EVER),
    st.just(None),  # from now; gone
)


async def settled() -> None:
    """Return once everybody whose deadline has passed was looked at."""
    for _ in range(2 * MANY // PER_TURN):
        await asyncio.sleep(0)


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.lists(st.tuples(st.integers(0, 3), MOVES), max_size=4)),
        max_size=12,
    )
)
def test_nobody_is_looked_at_early_or_late(
    history: list[tuple[float, list[tuple[int, float | None]]]],
) -> None:
    """However deadlines move, and time passes: at most a tick late, once, and never when gone."""

    async def live() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        clients = [Client(deadlines) for _ in range(4)]
        gone: set[Client] = set()
        for seconds, moves in [*history, (60.0, [])]:
            for number, move in moves:
                client = clients[number]
                if move is None:
                    client.deadline = FOR_EVER
                    deadlines.forget(client)
                    gone.add(client)
                else:
                    client.set(loop.time() + move)
            since = loop.time()
            expected = {each: (each.deadline, len(each.looks)) for each in clients}
            await pass_time(seconds)
            now = loop.time()
            for client, (deadline, before) in expected.items():
                new = client.looks[before:]
                if client in gone or deadline > now:
                    assert new == []
                elif max(deadline, since) + TICK + SLACK < now:
                    assert len(new) == 1
                assert len(new) <= 1
        assert not deadlines._filed
        assert deadlines._timer is None

    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        runner.run(live())


@pytest.mark.clock
async def test_many_at_once_are_looked_at_a_few_at_a_time() -> None:
    """A turn of the loop is never longer than a few of them need."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    clients = [Client(deadlines) for _ in range(MANY)]
    for client in clients:
        client.set(loop.time() + 1.0)
    seen = [0]

    def count() -> None:
        seen.append(sum(len(each.looks) for each in clients))
        if seen[-1] < MANY:
            loop.call_soon(count)

    loop.call_at(loop.time() + 1.0, count)
    await pass_time(1.0 + 2 * TICK)
    await settled()

    assert seen[-1] == MANY
    assert max(b - a for a, b in pairwise(seen)) <= PER_TURN


@pytest.mark.clock
async def test_one_that_fails_does_not_stop_the_clocks() -> None:
    """The others are looked at all the same, again and again; so is it."""
    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    deadlines = Deadlines(loop)
    faulty, sound = Faulty(deadlines, stays=True), Client(deadlines, stays=True)
    for client in (faulty, sound):
        client.set(loop.time())
    for _ in range(3):
        await pass_time(TICK)

    assert len(sound.looks) > 1
    assert len(faulty.looks) == len(told) > 1


@pytest.mark.clock
async def test_a_deadline_that_moves_on_costs_nothing_and_is_kept() -> None:
    """A request moves it several times: it is filed once, and looked at when the last says."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    client = Client(deadlines)
    client.set(loop.time() + 1.0)
    filed = {tick: set(bucket) for tick, bucket in deadlines._filed.items()}
    for seconds in range(2, 10):
        client.set(loop.time() + seconds)
    same = deadlines._filed == filed
    await pass_time(8.0)
    early = list(client.looks)
    await pass_time(1.0 + 2 * TICK)

    assert same
    assert early == []
    assert len(client.looks) == 1


@pytest.mark.clock
async def test_with_nothing_to_wait_for_there_is_no_tick() -> None:
    """A process without clients sleeps."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    client = Client(deadlines)
    client.set(loop.time() + 1.0)
    deadlines.forget(client)
    await pass_time(2.0)

    assert deadlines._timer is None
