"""Clients that have stopped taking what they are sent are noticed by a slow tick."""

import asyncio

import pytest

from llmproxy.stalls import TICKS, Delivery, Stalls
from tests.support.clock import pass_time

WITHIN = 60.0
TICK = WITHIN / TICKS


async def stand_still(stalls: Stalls, started: asyncio.Event) -> Delivery:
    """Be in one send for ever; return the delivery once it was given up."""
    delivery = stalls.begin(watched=False)
    delivery.count += 1
    delivery.sending = True
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        stalls.end(delivery)
    return delivery


async def begun(stalls: Stalls) -> asyncio.Task[Delivery]:
    started = asyncio.Event()
    task = asyncio.create_task(stand_still(stalls, started))
    await started.wait()
    return task


@pytest.mark.clock
async def test_who_stands_still_too_long_is_cancelled() -> None:
    """Within the limit and a quarter more; and it is said why."""
    stalls = Stalls(WITHIN)
    task = await begun(stalls)

    for _ in range(TICKS):
        await pass_time(TICK)
    early = task.done()
    await pass_time(TICK)

    assert not early
    assert (await task).stalled
    stalls.close()


@pytest.mark.clock
async def test_any_progress_starts_the_clock_anew() -> None:
    """A send that gets through counts, however slow it was."""
    stalls = Stalls(WITHIN)
    delivery = stalls.begin(watched=False)
    delivery.sending = True

    for _ in range(5 * TICKS):
        delivery.count += 1
        await pass_time(TICK)

    assert not delivery.stalled
    stalls.close()


@pytest.mark.clock
async def test_who_waits_for_the_engine_does_not_stand_still() -> None:
    """Only a send that does not end is the client's doing."""
    stalls = Stalls(WITHIN)
    delivery = stalls.begin(watched=False)
    delivery.count += 1

    for _ in range(5 * TICKS):
        await pass_time(TICK)

    assert not delivery.stalled
    stalls.close()


@pytest.mark.clock
async def test_one_who_stands_still_is_told_apart_from_his_neighbours() -> None:
    """All are looked at by the same tick, each by itself."""
    stalls = Stalls(WITHIN)
    stuck = await begun(stalls)
    moving = await begun(stalls)
    moving_delivery = next(each for each in stalls._deliveries if each.task is moving)

    for _ in range(TICKS + 1):
        moving_delivery.count += 1
        await pass_time(TICK)

    assert stuck.done()
    assert not moving.done()
    moving.cancel()
    await moving
    stalls.close()


@pytest.mark.clock
async def test_no_limit_means_no_watch() -> None:
    """0 is for ever."""
    stalls = Stalls(0)
    delivery = stalls.begin(watched=False)
    delivery.sending = True

    for _ in range(10):
        await pass_time(1000)

    assert not delivery.stalled


@pytest.mark.clock
async def test_what_the_server_watches_is_not_watched_twice() -> None:
    """Our own server cuts such a client itself."""
    stalls = Stalls(WITHIN)
    delivery = stalls.begin(watched=True)
    delivery.sending = True

    for _ in range(2 * TICKS):
        await pass_time(TICK)

    assert not delivery.stalled


@pytest.mark.clock
async def test_with_nothing_to_watch_there_is_no_timer() -> None:
    """An idle proxy sleeps; the next delivery is watched again."""
    stalls = Stalls(WITHIN)
    delivery = stalls.begin(watched=False)
    stalls.end(delivery)
    await pass_time(TICK)
    idle = stalls._timer

    task = await begun(stalls)
    for _ in range(TICKS + 1):
        await pass_time(TICK)

    assert idle is None
    assert (await task).stalled
    stalls.close()


@pytest.mark.clock
async def test_after_the_close_nobody_is_cancelled() -> None:
    """What goes on while the app ends is ended by others."""
    stalls = Stalls(WITHIN)
    task = await begun(stalls)
    stalls.close()

    for _ in range(2 * TICKS):
        await pass_time(TICK)

    assert not task.done()
    task.cancel()
    await task
