"""What requests owe the store from a time when it could not be asked, until it is back.

Rule 1: nobody waits for it. A task looks from time to time whether the store is there again.
Rule 2: what finds no place, and what is left when the store does not come back, is counted and
        said.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from llmproxy import clock
from llmproxy.rate_limit.unsettled import Settled, Unsettled
from llmproxy.store.interface import Meters, Unavailable

RETRY = 0.5  # seconds between two tries
AT_A_TIME = 500  # settlements in one call
QUIET = 60.0  # seconds between two lines of the log about what was dropped

log = logging.getLogger("llmproxy")


class Counts(Protocol):
    """Who is told of what is lost."""

    def settlements_dropped(self, count: int) -> None:
        """So many amounts could not be kept until the store was back."""


class Arrears:
    """Settlements of one app that wait for its store."""

    def __init__(self, store: Meters, counts: Counts, *, workers: int) -> None:
        self._store = store
        self._counts = counts
        self._unsettled = Unsettled(workers)
        self._settler: asyncio.Task[None] | None = None
        self._quiet_until = 0.0

    def __len__(self) -> int:
        return len(self._unsettled)

    def keep(self, settled: Settled, owner: str) -> None:
        """Keep a settlement until the store is back, and see to it that somebody looks."""
        before = self._unsettled.dropped
        self._unsettled.keep(settled, owner, clock.now())
        if self._unsettled.dropped != before:
            self._drop(1)
        loop = asyncio.get_running_loop()
        settler = self._settler
        if settler is None or settler.done() or settler.get_loop() is not loop:
            self._settler = loop.create_task(self._settle_later())

    async def aclose(self) -> None:
        """Settle what is left, as far as the store can be asked."""
        settler, self._settler = self._settler, None
        if settler is not None and settler.get_loop() is asyncio.get_running_loop():
            settler.cancel()
            with suppress(asyncio.CancelledError):
                await settler
        await self._settle()
        if len(self._unsettled):
            self._drop(len(self._unsettled))

    async def _settle_later(self) -> None:
        while len(self._unsettled):
            await asyncio.sleep(RETRY)
            await self._settle()

    async def _settle(self) -> None:
        """Settle what is kept, if the store is back."""
        if not len(self._unsettled) or not self._store.available:
            return
        try:
            alive = (await self._store.take(())).owner
        except Unavailable:
            return
        waiting = [
            (owner, entries[start : start + AT_A_TIME])
            for owner, entries in self._unsettled.take_out(clock.now(), alive).items()
            for start in range(0, len(entries), AT_A_TIME)
        ]
        while waiting:
            owner, entries = waiting.pop()
            try:
                await self._store.settle(entries, owner)
            except asyncio.CancelledError:
                self._keep_again(waiting)  # without the one that is on its way
                raise

    def _keep_again(self, waiting: Sequence[tuple[str, Sequence[Settled]]]) -> None:
        now = clock.now()
        for owner, entries in waiting:
            for settled in entries:
                self._unsettled.keep(settled, owner, now)

    def _drop(self, count: int) -> None:
        self._counts.settlements_dropped(count)
        now = clock.now()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            log.error("the store is away for too long: some of what was used is not written down")
