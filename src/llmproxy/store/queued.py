"""The methods of a store that is asked through a queue: the same for SQLite and for Redis."""

from collections import Counter
from collections.abc import Sequence

from llmproxy.store.counters import Taken, Wanted
from llmproxy.store.dispatch import Carrier, Dispatcher
from llmproxy.store.interface import Grant, Meter, Reading
from llmproxy.store.operations import (
    Append,
    Delete,
    Entries,
    Get,
    Names,
    Put,
    Read,
    Replace,
    Settle,
    Take,
)


class QueuedStore:
    """Every method is one operation, and waits until it was carried."""

    shared = True

    def __init__(
        self, carrier: Carrier, *, patience: float, lease: float, events: Counter[str]
    ) -> None:
        self.events = events
        self._dispatcher = Dispatcher(carrier, patience=patience, lease=lease, events=events)

    @property
    def available(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._dispatcher.available

    async def start(self) -> None:
        """Begin to renew the lease."""
        self._dispatcher.start()

    async def aclose(self) -> None:
        """Write what is still to be written, give back what is held, let go of everything."""
        await self._dispatcher.aclose()

    async def take(self, wanted: Wanted) -> Grant:
        """Take all of these amounts, or nothing at all."""
        return await self._dispatcher.ask(Take(wanted))

    async def settle(self, taken: Taken, owner: str) -> None:
        """Replace what was taken by what it really was."""
        self._dispatcher.tell(Settle(taken, owner))

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        """Return how these meters stand."""
        return await self._dispatcher.ask(Read(meters))

    async def get(self, name: str) -> bytes | None:
        """Return what is kept under a name."""
        return await self._dispatcher.ask(Get(name))

    async def put(self, name: str, value: bytes, *, within: float | None = None) -> None:
        """Keep something, for some seconds or until it is deleted."""
        await self._dispatcher.ask(Put(name, value, within, new=False))

    async def add(self, name: str, value: bytes, *, within: float | None = None) -> bool:
        """Keep something unless there is something."""
        return await self._dispatcher.ask(Put(name, value, within, new=True))

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        """Put `new` in the place of exactly `old`."""
        return await self._dispatcher.ask(Replace(name, old, new))

    async def delete(self, name: str) -> bool:
        """Forget a name."""
        return await self._dispatcher.ask(Delete(name))

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin like this, in order."""
        found: set[str] = set()  # a walk may come by the same name twice
        cursor = ""
        while True:
            cursor, names = await self._dispatcher.ask(Names(prefix, cursor))
            found.update(names)
            if not cursor:
                return sorted(found)

    async def append(self, name: str, entry: bytes, *, keep: int) -> None:
        """Add an entry to a list."""
        await self._dispatcher.ask(Append(name, entry, keep))

    async def entries(self, name: str, *, last: int) -> list[bytes]:
        """Return the last entries of a list, oldest first."""
        return await self._dispatcher.ask(Entries(name, last))
