"""Heavy work, one step in each turn of the event loop."""

import asyncio

from llmproxy.turns import my_turn
from tests.support.turns import counted_turns


async def test_nobody_has_a_turn_beside_another() -> None:
    """However many ask at once, and ask again; they get them in the order in which they asked."""
    steps: list[tuple[int, str]] = []

    async def work(name: str) -> None:
        for _ in range(3):
            await my_turn()
            steps.append((turns.count, name))

    async with counted_turns() as turns:
        await asyncio.gather(*map(work, "abcd"))

    assert len({turn for turn, _ in steps}) == 12
    assert "".join(name for _, name in steps) == "abcd" * 3


async def test_others_go_on_meanwhile() -> None:
    """A turn of the loop is not waited for longer than for whoever came before."""
    async with counted_turns() as turns:
        before = turns.count
        await asyncio.gather(*(my_turn() for _ in range(10)))
        assert 10 <= turns.count - before <= 13


async def test_who_has_left_takes_nobody_s_turn() -> None:
    """A request that was cancelled while it waited does not hold up those behind it."""

    async def work() -> None:
        await my_turn()

    leaving = [asyncio.create_task(work()) for _ in range(5)]
    await asyncio.sleep(0)
    last = asyncio.create_task(work())
    await asyncio.sleep(0)
    for each in leaving:
        each.cancel()
    async with asyncio.timeout(5):
        await last
        await my_turn()


def test_each_event_loop_has_its_own() -> None:
    """Also when one was closed with somebody waiting in it."""

    async def leave() -> None:
        for _ in range(5):
            my_turn()

    async def work() -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*(my_turn() for _ in range(3)))

    for each in (leave, work, leave, work):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(each())
        loop.close()
