"""Finishing what must be finished."""

import asyncio

import pytest

from llmproxy.cleanup import finish

LONG = 60.0  # seconds; never reached


async def test_the_work_is_done() -> None:
    """The plain case: nobody interferes."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("work")

    await finish(work(), within=LONG)

    assert done == ["work"]


async def test_a_cancellation_waits_for_the_work() -> None:
    """Who is cancelled in the middle finishes the work first, and is cancelled then."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        begun.set()
        await go_on.wait()
        done.append("work")

    task = asyncio.create_task(finish(work(), within=LONG))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([task])

    assert done == ["work"]
    assert task.cancelled()


async def test_a_second_cancellation_ends_the_waiting() -> None:
    """Patience has an end before its time when somebody insists; the work is stopped then."""
    begun = asyncio.Event()
    stopped: list[str] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append("work")
            raise

    task = asyncio.create_task(finish(work(), within=LONG))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)

    assert task.cancelled()
    assert stopped == ["work"]


async def test_work_without_an_end_is_stopped() -> None:
    """Running out of time is silent, and leaves nothing running behind."""
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await finish(work(), within=0.01)

    async with asyncio.timeout(5):
        await stopped.wait()


async def test_a_failure_of_the_work_is_raised() -> None:
    """It is not hidden by having been finished."""

    async def work() -> None:
        raise LookupError("no such reservation")

    with pytest.raises(LookupError):
        await finish(work(), within=LONG)


async def test_a_failure_does_not_swallow_the_cancellation() -> None:
    """Who was cancelled stays cancelled, also when the work fails afterwards."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        raise LookupError("no such reservation")

    task = asyncio.create_task(finish(work(), within=LONG))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([task])

    assert task.cancelled(), task.exception()


async def test_a_clock_around_it_is_told_apart() -> None:
    """A timeout of the caller comes out as that timeout, with the work done."""
    go_on = asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await go_on.wait()
        done.append("work")

    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await finish(work(), within=LONG)

    assert done == ["work"]
