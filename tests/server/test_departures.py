"""Many who leave at once keep nobody waiting."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.server.departures import PER_TURN, Departures


@dataclass(eq=False)
class Counted:
    """Counts how often it was cancelled."""

    times: int = 0

    def cancel(self) -> None:
        self.times += 1


async def turns_of(batches: list[int]) -> tuple[list[Counted], list[int]]:
    """Let a batch leave in each turn; return them all, and how many were cancelled by turn."""
    departures = Departures(asyncio.get_running_loop())
    leavers: list[Counted] = []
    done: list[int] = []
    waiting = list(batches)
    while waiting or len(leavers) > sum(done):
        for _ in range(waiting.pop(0) if waiting else 0):
            leavers.append(Counted())
            departures.add(leavers[-1])
        before = sum(each.times for each in leavers)
        await asyncio.sleep(0)
        done.append(sum(each.times for each in leavers) - before)
        assert len(done) < 1000, "somebody is never seen off"
    return leavers, done


async def test_one_alone_goes_in_the_next_turn() -> None:
    """A single hang-up is not slower than before."""
    _, done = await turns_of([1])

    assert done == [1]


@given(st.lists(st.integers(0, 3 * PER_TURN), max_size=8))
def test_everybody_goes_once_and_few_at_a_time(batches: list[int]) -> None:
    """However they come; and no turn is left out while somebody waits."""
    leavers, done = asyncio.run(turns_of(batches))

    assert all(each.times == 1 for each in leavers)
    assert all(count <= PER_TURN for count in done)
    if sum(batches) and len(batches) == 1:
        assert done.count(0) == 0
