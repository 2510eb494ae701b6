"""Rates that are taken from before anybody knows how much: who has what of them.

What is taken of a provisional rate is a guess. It is noted under its owner until the truth is
settled; when the owner dies before that, it is given back, as if it were settled with nothing.

Only where several processes share the meters, one of them can die and leave the others its guesses.
So the store of one process counts with `Counters`, and pays for none of this.
"""

from llmproxy.store.counters import Account, Counters, Taken, Wanted
from llmproxy.store.interface import Grant


class NotingCounters(Counters):
    """Counters of several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Account] = {}  # by the name of the rate

    def take(self, wanted: Wanted, owner: str, now: float, wall: float) -> Grant:
        """Take all of it or nothing, and note what is provisional."""
        grant = super().take(wanted, owner, now, wall)
        if grant.granted:
            for meter, amount in wanted:
                if meter.provisional:
                    self.notes.setdefault(meter.name, Account()).hold(owner, amount)
        return grant

    def settle(self, taken: Taken, owner: str, now: float, wall: float) -> None:
        """Put what it really was in the place of what was taken, as far as it is still noted."""
        known = []
        for meter, amount, actual in taken:
            notes = self.notes.setdefault(meter.name, Account()) if meter.provisional else None
            back = amount if notes is None else notes.give_back(owner, amount)
            known.append((meter, back, actual))
        super().settle(known, owner, now, wall)
