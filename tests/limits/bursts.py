"""Bursts of ten times the limit, over and over.

    python -m tests.limits.bursts --rounds 100 [--store sqlite] [--workers 4]

Prints how many rounds have admitted exactly the limit, and what the others have done.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

import uvloop

from tests.limits.fleet import answers_at_once, burst, fleet
from tests.server.family import until
from tests.support.redis_server import redis_running

LIMIT = 40
WISHES = 10 * LIMIT
CLIENTS = 4  # of each worker
PERIOD = 3600.0 / LIMIT  # seconds after which one more would rightly be let in


class Round(NamedTuple):
    """What has become of one burst."""

    statuses: Counter[int]
    reached: int  # requests that the engine was asked
    stalled: bool  # a worker has waited for the store in vain, and has kept a share by itself

    @property
    def exact(self) -> bool:
        return self.statuses == EXACT and self.reached == LIMIT


async def rounds(
    count: int, *, store: str, workers: int, spare: int = 0, patient: bool = False
) -> AsyncGenerator[Round, None]:
    """Yield as many rounds, and so many more if they are asked for.

    Each begins when every worker has its store: one that was left in the last is none of its own.
    """
    count += spare
    # Each round has a key of its own: a limit that is used up stays so for an hour.
    keys = [f"k{n}:secret-of-round-{n};limits={LIMIT} req/hour" for n in range(count)]
    async with (
        fleet(answers_at_once, keys=keys, store=store, workers=workers, patient=patient) as running,
        running.crew(CLIENTS) as crew,
    ):
        clients = [client for several in crew for client in several]
        for number in range(count):
            await until(lambda: not running.away, "every worker has its store")
            before, gave_up = len(running.engine.requests), running.gave_up
            began = time.monotonic()
            statuses = await burst(clients, f"secret-of-round-{number}", WISHES)
            assert time.monotonic() - began < PERIOD, "too slow to tell anything"
            reached = len(running.engine.requests) - before
            if statuses != EXACT:
                await asyncio.sleep(0.3)  # the log is read by somebody else, and a little later
            yield Round(statuses, reached, running.gave_up > gave_up)


EXACT = Counter({200: LIMIT, 429: WISHES - LIMIT})


async def all_rounds(count: int, store: str, workers: int) -> list[Round]:
    async with aclosing(rounds(count, store=store, workers=workers)) as found:
        return [each async for each in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--store", choices=["redis", "sqlite"], default="redis")
    options = parser.parse_args()
    with redis_running() as server, tempfile.TemporaryDirectory() as folder:
        store = server.url if options.store == "redis" else f"sqlite:///{folder}/store.db"
        began = time.monotonic()
        results = uvloop.run(all_rounds(options.rounds, store, options.workers))
        took = time.monotonic() - began
    exact = sum(each.exact for each in results)
    tell = sys.stdout.write
    tell(
        f"{options.store}, {options.workers} workers, {WISHES} wishes on a limit of {LIMIT}: "
        f"exact in {exact} of {len(results)} rounds ({took:.0f} s)\n"
    )
    for number, each in enumerate(results):
        if not each.exact or each.stalled:
            why = " (the store was too slow for a worker)" if each.stalled else ""
            told = f"{dict(each.statuses)}, {each.reached} reached the engine"
            tell(f"round {number}: {told}{why}\n")


if __name__ == "__main__":
    main()
