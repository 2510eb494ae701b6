"""Callers who leave at any moment: nothing is mixed up and nothing stays behind."""

import asyncio
import random

import pytest

from llmproxy.store.interface import Grant, Kind, Meter, Store
from llmproxy.store.opening import open_store
from tests.store.waiting import until_left

SLOTS = Meter("slots", Kind.HELD, 1000)
MONEY = Meter("money", Kind.SPENT, 1000, window="total")
RATE = Meter("rate", Kind.RATE, 1e6, 86400 * 365)

CALLERS = 10_000
AT_ONCE = 200


async def test_a_storm_of_cancellations_leaves_nothing_behind(store: Store) -> None:
    """Of ten thousand callers many leave at a random moment; the others get their own answers."""
    dice = random.Random(1)
    mixed_up: list[int] = []
    completed = 0
    for number in range(50):
        await store.put(f"record:{number}", b"%d" % number)

    async def caller(number: int) -> None:
        nonlocal completed
        if number % 4 == 0:
            if await store.get(f"record:{number % 50}") != b"%d" % (number % 50):
                mixed_up.append(number)
        elif number % 4 == 1:
            meter = Meter(f"alone:{number}", Kind.HELD, number)
            (reading,) = await store.read([meter])
            if reading.left != number:
                mixed_up.append(number)
        else:
            taken = [(SLOTS, 1.0), (MONEY, 1.0), (RATE, 1.0)]
            grant: Grant = await store.take(taken)
            try:
                assert grant.granted and len(grant.readings) == 3
                await asyncio.sleep(0)
            finally:
                await store.settle([(meter, amount, 0) for meter, amount in taken], grant.owner)
        completed += 1

    for begin in range(0, CALLERS, AT_ONCE):
        tasks = [asyncio.create_task(caller(begin + number)) for number in range(AT_ONCE)]
        impatient = dice.sample(tasks, AT_ONCE // 2)
        while impatient:
            for _ in range(dice.randint(0, min(8, len(impatient)))):
                impatient.pop().cancel()
            await asyncio.sleep(0)
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or task.exception() is None

    await until_left(store, SLOTS, 1000)
    await until_left(store, MONEY, 1000)
    (rate,) = await store.read([RATE])
    assert rate.left == pytest.approx(1e6)
    assert mixed_up == []
    assert CALLERS // 2 <= completed < CALLERS or not store.shared
    assert store.available and store.events.get("lost", 0) == 0


async def test_who_leaves_when_the_answer_is_on_its_way_holds_nothing(store: Store) -> None:
    """Whichever tick it is: before the call, under way, or between the answer and its reader."""
    for ticks in range(40):
        task = asyncio.create_task(store.take([(SLOTS, 1)]))
        for _ in range(ticks):
            await asyncio.sleep(0)
        if task.cancel():
            await asyncio.wait([task])
        if not task.cancelled():
            await store.settle([(SLOTS, 1, 0)], task.result().owner)
        await until_left(store, SLOTS, 1000)


async def test_a_store_that_is_closed_has_written_everything(shared_url: str) -> None:
    """What was settled last is there, and what was held is not."""
    first = open_store(shared_url, patience=5)
    grant = await first.take([(SLOTS, 5), (MONEY, 5)])
    await first.take([(SLOTS, 7), (MONEY, 7)])
    await first.settle([(SLOTS, 5, 0), (MONEY, 5, 3)], grant.owner)
    await first.aclose()
    second = open_store(shared_url, patience=5)
    try:
        slots, money = await second.read([SLOTS, MONEY])
        assert (slots.left, money.left) == (1000, 997)
    finally:
        await second.aclose()
