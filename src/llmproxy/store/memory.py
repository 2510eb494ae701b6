"""The store of one process: nothing is shared and nothing is kept.

No method ever suspends, so nothing can come between what is read and what is written, and no
caller can be cancelled half way.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from secrets import token_hex

from llmproxy import clock
from llmproxy.store.counters import Counters, Taken, Wanted
from llmproxy.store.interface import Grant, Meter, Reading


class MemoryStore:
    """Meters and records in dictionaries."""

    shared = False
    available = True

    def __init__(
        self,
        *,
        steady: Callable[[], float] = clock.now,
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        self.events: Counter[str] = Counter()
        self.steady = steady
        self._wall = wall
        self._owner = token_hex(8)
        self._counters = Counters()
        self._records: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()
        self._lists: dict[str, deque[bytes]] = {}

    async def start(self) -> None:
        """There is no lease: what is held dies with the process."""

    async def aclose(self) -> None:
        """There is nothing to write and nobody to give back to."""

    async def take(self, wanted: Wanted) -> Grant:
        """Take all of it or nothing."""
        return self.take_now(wanted)

    async def settle(self, taken: Taken, owner: str) -> None:
        """Put what it really was in the place of what was taken."""
        self.settle_now(taken, owner)

    def take_now(self, wanted: Wanted) -> Grant:
        """Take all of it or nothing."""
        now, wall = self.steady(), self._wall()
        grant = self._counters.take(wanted, self._owner, now, wall)
        if self._counters.created:
            self._counters.forget(now, wall)
        return grant

    def settle_now(self, taken: Taken, owner: str) -> None:
        """Put what it really was in the place of what was taken."""
        self._counters.settle(taken, owner, self.steady(), self._wall())

    def counters(self) -> Counters:
        """Return what is counted here."""
        if self._counters.created:
            self._counters.forget(self.steady(), self._wall())
        return self._counters

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        """Tell how they stand."""
        return self._counters.read(meters, self.steady(), self._wall())

    async def get(self, name: str) -> bytes | None:
        """Return what is kept under a name."""
        found = self._found(name)
        return found[0] if found is not None else None

    async def put(self, name: str, value: bytes, *, within: float | None = None) -> None:
        """Keep something."""
        self._records[name] = value, None if within is None else self.steady() + within
        self._forget()

    async def add(self, name: str, value: bytes, *, within: float | None = None) -> bool:
        """Keep something unless there is something."""
        if self._found(name) is not None:
            return False
        await self.put(name, value, within=within)
        return True

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        """Put `new` in the place of exactly `old`."""
        found = self._found(name)
        if found is None or found[0] != old:
            return False
        self._records[name] = new, found[1]
        return True

    async def delete(self, name: str) -> bool:
        """Forget a name."""
        found = self._found(name)
        self._records.pop(name, None)
        return found is not None

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin like this, in order."""
        begin_so = [name for name in self._records if name.startswith(prefix)]
        return sorted(name for name in begin_so if self._found(name) is not None)

    async def append(self, name: str, entry: bytes, *, keep: int) -> None:
        """Add an entry to a list."""
        entries = self._lists.get(name)
        if entries is None or entries.maxlen != keep:
            entries = self._lists[name] = deque(entries or (), keep)
        entries.append(entry)

    async def entries(self, name: str, *, last: int) -> list[bytes]:
        """Return the last entries of a list, oldest first."""
        return list(self._lists.get(name, ()))[-last:] if last > 0 else []

    def _found(self, name: str) -> tuple[bytes, float | None] | None:
        found = self._records.get(name)
        if found is None or found[1] is None or self.steady() < found[1]:
            return found
        del self._records[name]
        return None

    def _forget(self) -> None:
        """Look at two of the oldest for each new one, so that what has expired does not pile up."""
        for _ in range(min(2, len(self._records))):
            name = next(iter(self._records))
            if self._found(name) is not None:
                self._records.move_to_end(name)
