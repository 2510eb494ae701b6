"""What was looked up in the store and may be believed without asking again.

Rule 1: what was found and what was not found are kept in two bounded tables. Whoever makes up
        keys can fill only the second.
Rule 2: whoever asks for the same thing at the same time shares one look into the store.
Rule 3: once anything has changed in the store, each entry is looked up again before it counts.
Rule 4: while the store is down, what was found counts for `GRACE`, from when it was last known
        to be true; about everything else nothing can be said.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmproxy import clock
from llmproxy.auth.single_flight import SingleFlight
from llmproxy.errors import StoreUnavailable
from llmproxy.store.interface import Unavailable

GRACE = 600.0  # seconds
MOST_FOUND = 10_000  # entries
MOST_MISSED = 10_000  # entries
MISSED_FOR = 30.0  # seconds; whatever is made meanwhile is noticed as a change
RETRY_AFTER = 5  # seconds

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def keys_unavailable() -> StoreUnavailable:
    """Return the answer for somebody who may be as good a caller as any."""
    return StoreUnavailable("API keys cannot be checked right now.", retry_after=RETRY_AFTER)


class Standing:
    """How current everything is that was looked up."""

    def __init__(self) -> None:
        self.generation = 0
        self.down = False
        self._confirmed = -math.inf
        self._confirmed_before = -math.inf

    def confirm(self, since: float, *, changed: bool) -> None:
        """Note that the store answered to a question asked at `since` (monotonic)."""
        if changed:
            self.generation += 1
            self._confirmed_before = self._confirmed
        self.down = False
        self._confirmed = since

    def last_true(self, generation: int, looked_up: float) -> float:
        """Return when something was last known to be true."""
        if generation == self.generation:
            return max(looked_up, self._confirmed)
        if generation == self.generation - 1:
            return max(looked_up, self._confirmed_before)
        return looked_up


@dataclass(slots=True)
class Entry(Generic[V]):
    """One thing that was looked up; None when it is not there."""

    value: V | None
    generation: int
    looked_up: float  # monotonic


class Lookups(Generic[K, V]):
    """A bounded memory of what the store has said."""

    def __init__(self, standing: Standing, ask: Callable[[K], Awaitable[V | None]]) -> None:
        self._standing = standing
        self._ask = ask
        self._found: OrderedDict[K, Entry[V]] = OrderedDict()
        self._missed: OrderedDict[K, Entry[V]] = OrderedDict()
        self._flight: SingleFlight[K, Entry[V]] = SingleFlight()

    async def get(self, key: K) -> V | None:
        """Return what the store has under a key; raise `StoreUnavailable` if nobody can say."""
        entry = self.at_hand(key)
        if entry is None:
            try:
                entry = await self._flight.run(key, lambda: self._fetch(key))
            except Unavailable:
                entry = self._found.get(key)
                if entry is None or not self._in_grace(entry):
                    raise keys_unavailable() from None
        return entry.value

    def at_hand(self, key: K) -> Entry[V] | None:
        """Return what is known without a look into the store."""
        entry = self._found.get(key)
        if entry is not None:
            if entry.generation != self._standing.generation:
                return None
            if self._standing.down and not self._in_grace(entry):
                return None
            self._found.move_to_end(key)
            return entry
        entry = self._missed.get(key)
        if (
            entry is not None
            and entry.generation == self._standing.generation
            and clock.now() - entry.looked_up < MISSED_FOR
        ):
            return entry
        return None

    async def aclose(self) -> None:
        """End what is under way."""
        await self._flight.aclose()

    def _in_grace(self, entry: Entry[V]) -> bool:
        true_at = self._standing.last_true(entry.generation, entry.looked_up)
        return clock.now() - true_at < GRACE

    async def _fetch(self, key: K) -> Entry[V]:
        # Both from before the question: what changes meanwhile makes the answer an old one.
        generation, now = self._standing.generation, clock.now()
        entry = Entry(await self._ask(key), generation, now)
        if entry.value is not None:
            self._missed.pop(key, None)
            _keep(self._found, key, entry, MOST_FOUND)
        else:
            self._found.pop(key, None)
            _keep(self._missed, key, entry, MOST_MISSED)
        return entry


def _keep(table: "OrderedDict[K, Entry[V]]", key: K, entry: Entry[V], most: int) -> None:
    table[key] = entry
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
