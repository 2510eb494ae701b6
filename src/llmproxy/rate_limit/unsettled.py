"""What could not be settled while the store was away, and is when it comes back.

Rule 1: what is held under a lease that still lives is given back, or it would be held for ever.
Rule 2: a budget gets every amount, however late. A rate drains meanwhile, so what is owed to it
        drains too: late news never takes away from what has been counted since.
Rule 3: one entry per meter, and so many of them; what finds no place is counted.
"""

from dataclasses import dataclass

from llmproxy.store.interface import Kind, Meter

MOST_METERS = 20_000

Settled = tuple[Meter, float, float]


@dataclass(slots=True)
class _Entry:
    meter: Meter
    taken: float
    actual: float
    at: float

    def drain(self, now: float, workers: int) -> None:
        """Take off a rate what has drained from the meter itself."""
        if self.meter.kind is not Kind.RATE:
            return
        drained = max(0.0, now - self.at) * self.meter.limit / self.meter.period
        self.at = now
        # What is given back must not be more than what is still in there; of what is owed, each
        # worker lets its own share drain.
        self.taken = max(0.0, self.taken - drained)
        self.actual = max(0.0, self.actual - drained / workers)


class Unsettled:
    """Settlements that wait for the store, added up for each meter."""

    def __init__(self, workers: int, most: int = MOST_METERS) -> None:
        self._workers = workers
        self._most = most
        self._entries: dict[tuple[str, str], _Entry] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, settled: Settled, owner: str, now: float) -> None:
        """Keep one settlement: what was taken, and what it really was."""
        meter, taken, actual = settled
        if meter.kind is Kind.RATE:
            # Only the difference is news: the rest was counted when it was taken.
            taken, actual = max(0.0, taken - actual), max(0.0, actual - taken)
        entry = self._entries.get((owner, meter.name))
        if entry is not None:
            entry.drain(now, self._workers)
            entry.taken += taken
            entry.actual += actual
        elif len(self._entries) < self._most:
            self._entries[owner, meter.name] = _Entry(meter, taken, actual, now)
        else:
            self.dropped += 1

    def take_out(self, now: float) -> dict[str, list[Settled]]:
        """Return everything that is kept, by owner, and keep it no longer."""
        found: dict[str, list[Settled]] = {}
        for (owner, _), entry in self._entries.items():
            entry.drain(now, self._workers)
            if entry.taken or entry.actual:
                found.setdefault(owner, []).append((entry.meter, entry.taken, entry.actual))
        self._entries.clear()
        return found
