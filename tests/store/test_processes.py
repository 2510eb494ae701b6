"""Several processes at one store: exact together, and none of them takes anything to its grave."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from llmproxy.store.interface import Kind
from llmproxy.store.queued import QueuedStore
from tests.store.taker import PROVISIONAL, meter, opened
from tests.store.waiting import until_left
from tests.support.wire import patience

LEASE = 1.5  # seconds; a busy machine may hold us up for a part of it
LIMIT = 100
ALL = ",".join((*(kind.value for kind in Kind), PROVISIONAL))

SLOTS, MONEY, TOKENS = OWNED = [meter(kind, LIMIT) for kind in ("held", "spent", PROVISIONAL)]


@asynccontextmanager
async def taker(
    url: str, *, wishes: int, kinds: str = f"held,spent,{PROVISIONAL}", skew: float = 0
) -> AsyncIterator[Process]:
    """Start one, and see to its end."""
    words = [url, str(LEASE), str(skew), str(LIMIT), str(wishes), kinds]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.store.taker", *words, stdin=PIPE, stdout=PIPE
    )
    try:
        assert await said(process) == b"ready"
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def said(process: Process) -> bytes:
    """Return the next line that it prints."""
    assert process.stdout is not None
    async with patience("the other process said something"):
        return (await process.stdout.readline()).strip()


async def granted(process: Process) -> int:
    """Let it take, and return how much it got."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    return int(await said(process))


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[QueuedStore]:
    """Our own store at the same place."""
    store = opened(url, LEASE)
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


async def left(store: QueuedStore) -> list[float]:
    """Return what is left of all that has owners; what a rate has drained by now is nothing."""
    return [round(reading.left, 2) for reading in await store.read(OWNED)]


async def test_a_limit_is_exact_across_processes_whose_clocks_are_wrong(shared_url: str) -> None:
    """Three processes, ten minutes apart, wish for ten times the limit and get exactly that."""
    async with (
        taker(shared_url, wishes=400, kinds=ALL, skew=-600) as one,
        taker(shared_url, wishes=300, kinds=ALL) as two,
        taker(shared_url, wishes=300, kinds=ALL, skew=600) as three,
    ):
        got = await asyncio.gather(*(granted(each) for each in (one, two, three)))

        assert sum(got) == LIMIT
        async with ours(shared_url) as store:
            meters = [meter(kind, LIMIT) for kind in ALL.split(",")]
            assert all(reading.left < 1 for reading in await store.read(meters))


async def test_what_a_killed_process_held_comes_back(shared_url: str) -> None:
    """Within its lease, and not before; what others hold stays held."""
    async with ours(shared_url) as store, taker(shared_url, wishes=100) as other:
        await store.take([(each, 30) for each in OWNED])
        assert await granted(other) == 70
        await asyncio.sleep(LEASE * 1.2)  # it lives, and renews its lease
        assert await left(store) == [0, 0, 0]

        other.kill()
        began = asyncio.get_running_loop().time()
        await until_left(store, SLOTS, 70)

        assert asyncio.get_running_loop().time() - began < 2 * LEASE
        assert await left(store) == [70, 70, 70]


async def test_what_a_process_held_comes_back_when_it_leaves(shared_url: str) -> None:
    """At once: it says so."""
    async with ours(shared_url) as store, taker(shared_url, wishes=50) as other:
        await granted(other)
        assert other.stdin is not None
        other.stdin.close()
        await other.wait()

        assert await left(store) == [LIMIT, LIMIT, LIMIT]


async def test_a_frozen_process_comes_back_as_somebody_else(shared_url: str) -> None:
    """What it held was given up, and is not given back once more when it goes on."""
    async with ours(shared_url) as store, taker(shared_url, wishes=100) as other:
        await granted(other)
        os.kill(other.pid, signal.SIGSTOP)
        await until_left(store, SLOTS, LIMIT)
        await store.take([(each, 60) for each in OWNED])
        os.kill(other.pid, signal.SIGCONT)
        await asyncio.sleep(LEASE)  # it has renewed its lease by now, and found it ended

        assert await left(store) == [LIMIT - 60] * 3
        assert other.stdin is not None
        other.stdin.close()
        await other.wait()
        assert await left(store) == [LIMIT - 60] * 3
