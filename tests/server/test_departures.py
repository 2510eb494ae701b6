"""Many who leave at once keep nobody waiting, and no server works for them meanwhile."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.server.departures import LET_GO, PER_TURN, Departures


@dataclass(eq=False)
class Counted:
    """Counts how often it was let go and cancelled."""

    lets: int = 0
    times: int = 0

    def let_go(self) -> None:
        assert self.times == 0, "its request has ended first"
        self.lets += 1

    def cancel(self) -> None:
        self.times += 1


@dataclass(frozen=True)
class Turn:
    """What happened in one turn of the loop, and how many were still worked for after it."""

    let_go: int
    cancelled: int
    worked_for: int


async def turns_of(batches: list[int]) -> tuple[list[Counted], list[Turn]]:
    """Let a batch leave in each turn; return them all, and what was done by turn."""
    departures = Departures(asyncio.get_running_loop())
    leavers: list[Counted] = []
    done: list[Turn] = []
    waiting = list(batches)
    lets = times = 0
    while waiting or len(leavers) > times:
        for _ in range(waiting.pop(0) if waiting else 0):
            leavers.append(Counted())
            departures.add(leavers[-1])
        await asyncio.sleep(0)
        before = lets, times
        lets = sum(each.lets for each in leavers)
        times = sum(each.times for each in leavers)
        done.append(Turn(lets - before[0], times - before[1], len(leavers) - lets))
        assert len(done) < 1000, "somebody is never seen off"
    return leavers, done


async def test_one_alone_goes_in_the_next_turn() -> None:
    """A single hang-up does not wait for others that might follow."""
    _, done = await turns_of([1])

    assert done == [Turn(1, 1, 0)]


async def test_a_thousand_take_many_turns() -> None:
    """To see all of them off in one takes a fifth of a second, in which nobody else is served."""
    _, done = await turns_of([1000])

    assert max(turn.let_go for turn in done) <= 100
    assert max(turn.cancelled for turn in done) <= 20
    assert len(done) < 100  # and they are not kept for long


@given(st.lists(st.integers(0, 3 * LET_GO), max_size=8))
def test_everybody_goes_once_and_few_at_a_time(batches: list[int]) -> None:
    """However they come; and no turn is left out while somebody waits."""
    leavers, done = asyncio.run(turns_of(batches))

    assert all((each.lets, each.times) == (1, 1) for each in leavers)
    assert all(turn.let_go <= LET_GO and turn.cancelled <= PER_TURN for turn in done)
    if sum(batches) and len(batches) == 1:
        assert Turn(0, 0, 0) not in done


@given(st.lists(st.integers(0, 3 * LET_GO), max_size=8))
def test_servers_go_before_requests(batches: list[int]) -> None:
    """No request is ended while a server still works for somebody who has gone."""
    _, done = asyncio.run(turns_of(batches))

    assert not any(turn.cancelled and turn.worked_for for turn in done)
