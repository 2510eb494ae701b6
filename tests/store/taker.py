"""A process of its own that takes from a meter and holds on to what it got.

    python -m tests.store.taker URL LEASE SKEW LIMIT WISHES KINDS

Its calendar is wrong by SKEW seconds. KINDS are those of meters; `provisional` is a rate of that
sort. It prints `ready`, waits for a line on its standard input, makes all of its wishes (each is
for one of every kind), prints how many were granted, and waits for the end of its input.
"""

import asyncio
import sys
import time
from pathlib import Path

from llmproxy import clock
from llmproxy.store.interface import Grant, Kind, Meter
from llmproxy.store.queued import QueuedStore
from llmproxy.store.redis import RedisStore
from llmproxy.store.sqlite import SqliteStore
from llmproxy.store.urls import place

PROVISIONAL = "provisional"
TOGETHER = 5  # wishes at once: few, so that the processes get in each other's way


def opened(url: str, lease: float) -> QueuedStore:
    """Return a store whose lease is short enough for a test."""
    where = place(url)
    if where.kind == "sqlite":
        return SqliteStore(Path(where.path), lease=lease)
    return RedisStore(where, lease=lease, patience=2)


def meter(kind: str, limit: float) -> Meter:
    """Return the meter of a kind; a rate hardly drains while a test runs."""
    if kind == PROVISIONAL:
        return Meter(PROVISIONAL, Kind.RATE, limit, 86400 * 365, provisional=True)
    return Meter("meter", Kind(kind), limit, 86400 * 365, "total")


def say(text: str) -> None:
    """Print a line, now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(url: str, lease: str, skew: str, limit: str, wishes: str, kinds: str) -> None:
    """Do all of that."""
    real = time.time
    time.time = clock.wall = lambda: real() + float(skew)
    meters = [meter(kind, float(limit)) for kind in kinds.split(",")]
    wish = [(meter, 1.0) for meter in meters]
    store = opened(url, float(lease))
    await store.start()
    await store.read(meters)
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    grants: list[Grant] = []
    for _ in range(int(wishes) // TOGETHER):
        grants += await asyncio.gather(*(store.take(wish) for _ in range(TOGETHER)))
    say(str(sum(grant.granted for grant in grants)))
    await asyncio.to_thread(sys.stdin.read)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
