"""A body that comes in pieces."""

import asyncio
import os
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.gathered import Gathered, joined
from llmproxy.turns import STEP
from tests.support.turns import counted_turns

MIB = 1024 * 1024


async def gather(pieces: list[bytes], length: int | None) -> bytes:
    gathered = Gathered(length)
    for piece in pieces:
        await gathered.add(piece)
    assert gathered.size == sum(map(len, pieces))
    return await gathered.whole()


SIZES = st.lists(st.sampled_from([0, 1, 100, 4095, 4096, 65_536, MIB, 3 * MIB + 1]), max_size=12)


@settings(max_examples=40)
@given(sizes=SIZES, said=st.sampled_from(["nothing", "right", "more", "less"]))
def test_what_came_is_what_is_there(sizes: list[int], said: str) -> None:
    """In whatever pieces, and whatever was said of its length."""
    pieces = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    whole = b"".join(pieces)
    length = {
        "nothing": None,
        "right": len(whole),
        "more": 2 * len(whole) + 1,
        "less": len(whole) // 2,
    }[said]

    assert asyncio.run(gather(pieces, length)) == whole


async def test_a_promise_takes_no_memory() -> None:
    """A client that has sent a little of what it says it will has memory for that little."""
    tracemalloc.start()
    gathered = Gathered(64 * MIB)
    for _ in range(7):
        await gathered.add(os.urandom(MIB))
    _, before = tracemalloc.get_traced_memory()
    await gathered.add(os.urandom(MIB))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert before < 8 * MIB
    assert after > 64 * MIB, "an eighth is there, and from now on nothing has to grow"


async def test_crumbs_take_no_more_than_what_is_in_them() -> None:
    """An object for each byte would take forty times as much."""
    tracemalloc.start()
    gathered = Gathered(None)
    for number in range(100_000):
        await gathered.add(bytes([number % 251]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 200_000
    assert await gathered.whole() == bytes(number % 251 for number in range(100_000))


async def test_a_large_body_is_there_once() -> None:
    """It is not copied at the end, and the pieces are given back."""
    piece = os.urandom(STEP // 4)
    tracemalloc.start()
    gathered = Gathered(16 * MIB)
    for _ in range(64):
        await gathered.add(bytes(bytearray(piece)))
    whole = await gathered.whole()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert whole == piece * 64
    assert most < 20 * MIB


async def test_everybody_else_has_turns_while_a_body_is_put_together() -> None:
    """Also while the pieces move to where there is room for all, and when no length was said."""
    gathered = Gathered(None)
    async with counted_turns() as turns:
        for _ in range(8):
            await gathered.add(bytes(STEP))
        assert turns.count >= 7
        turns.count = 0
        await gathered.whole()

    assert turns.count >= 8


async def test_a_body_that_something_was_put_into_is_put_together_in_steps() -> None:
    """Between two of them everybody else has a turn."""
    body = os.urandom(8 * STEP)
    async with counted_turns() as turns:
        made = await joined((b"{", memoryview(body)))

    assert made == b"{" + body
    assert turns.count >= 8
