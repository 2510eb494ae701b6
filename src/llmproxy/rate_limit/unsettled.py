"""What could not be settled while the store was away, and is when it comes back.

Rule 1: what is held under a lease that still lives is given back, or it would be held for ever.
        What was held under a lease that has ended has come back by itself, and is not given back
        once more: only what was used of it is charged.
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
    at: float
    taken: float = 0.0
    actual: float = 0.0
    noted: float = 0.0  # of a provisional rate: what was taken, all of it
    used: float = 0.0  # and what was really used

    def add(self, taken: float, actual: float) -> None:
        """Add one settlement."""
        if self.meter.provisional:
            self.noted += taken
            self.used += actual
        if self.meter.kind is Kind.RATE:
            # Only the difference is news: the rest was counted when it was taken.
            taken, actual = max(0.0, taken - actual), max(0.0, actual - taken)
        self.taken += taken
        self.actual += actual

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
        self.used = max(0.0, self.used - drained / workers)

    def settled(self, *, alive: bool) -> tuple[float, float]:
        """Return what was taken and what it really was, as it is to be told now."""
        if not self.meter.provisional:
            return self.taken, self.actual
        if not alive:
            return 0.0, self.used
        # The note goes, all of it; the level changes by what has not drained.
        return self.noted, self.noted - self.taken + self.actual


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
        entry = self._entries.get((owner, meter.name))
        if entry is not None:
            entry.drain(now, self._workers)
        elif len(self._entries) < self._most:
            entry = self._entries[owner, meter.name] = _Entry(meter, now)
        else:
            self.dropped += 1
            return
        entry.add(taken, actual)

    def take_out(self, now: float, alive: str) -> dict[str, list[Settled]]:
        """Return everything that is kept, by owner, and keep it no longer.

        `alive` is the owner under whose lease we are now: that of any other has ended.
        """
        found: dict[str, list[Settled]] = {}
        for (owner, _), entry in self._entries.items():
            entry.drain(now, self._workers)
            taken, actual = entry.settled(alive=owner == alive)
            if taken or actual:
                found.setdefault(owner, []).append((entry.meter, taken, actual))
        self._entries.clear()
        return found
