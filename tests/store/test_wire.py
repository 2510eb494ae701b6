"""What a store believes: an answer to its own call, and a clock that it had time to look at."""

import asyncio
import time

import msgspec
import pytest

from llmproxy.store.redis_wire import Garbled, reply
from llmproxy.store.watch import Watch


def answer(*packed: object) -> list[bytes]:
    """Return what the script would send."""
    return [msgspec.msgpack.encode(packed)]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(answer("others", 7, "new", [], 0), id="somebody_elses"),
        pytest.param(answer("me", 6, "new", [], 0), id="to_the_call_before"),
        pytest.param(answer("me", 7), id="too_short"),
        pytest.param([b"\xc1"], id="not_packed"),
        pytest.param([], id="empty"),
        pytest.param(None, id="nothing"),
        pytest.param(b"OK", id="to_another_command"),
    ],
)
def test_an_answer_to_another_call_is_not_read(said: object) -> None:
    """Each carries the owner and the number of the call that it belongs to."""
    assert reply(answer("me", 7, "new", [], 0), "me", 7).state == "new"

    with pytest.raises(Garbled):
        reply(said, "me", 7)


async def test_a_watch_rings_when_the_time_is_up() -> None:
    """And not before."""
    rang = asyncio.Event()
    loop = asyncio.get_running_loop()
    due = loop.time() + 0.02

    watch = Watch(loop, due, rang.set)
    await rang.wait()

    assert watch.rang
    assert loop.time() >= due - 0.002


async def test_a_stall_of_our_own_is_no_fault_of_the_store() -> None:
    """What arrived while the loop stood still is read before anybody is told of an outage."""
    loop = asyncio.get_running_loop()
    watch = Watch(loop, loop.time() + 0.01, lambda: None)

    time.sleep(0.1)
    await asyncio.sleep(0)
    await asyncio.sleep(0.005)

    assert not watch.rang
    watch.stop()


async def test_a_watch_that_was_stopped_never_rings() -> None:
    """Not even one that was due."""
    loop = asyncio.get_running_loop()
    watch = Watch(loop, loop.time() + 0.005, lambda: None)
    watch.stop()

    await asyncio.sleep(0.02)

    assert not watch.rang
