"""The arithmetic of meters, without clocks and without I/O.

What `meters.lua` does inside Redis is done here for the other stores; a test holds the two side
by side. Two moments are given to everything: `now` never steps back and is for rates, `wall` is
the calendar and is for windows only.

- A rate has a level that drains evenly. A wish fits when the level would stay within the limit.
- An account has what is held, by owner, and what is spent in a window. A later window begins at
  zero; what is held goes over into it. An earlier one never comes back, whatever the calendar says.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import inf

from llmproxy.store.interface import Grant, Kind, Meter, Reading
from llmproxy.store.windows import Calendar

TINY = 1e-9  # what is less than this is nothing: sums of fractions do not come out at zero
_ABOVE_ONE = 1 + TINY  # by which a rate may be exceeded, for the same reason
SLACK = 1e-6  # and this, for its level is the outcome of a division
# Looking a member up in its Enum costs as much as a sum.
RATE, SPENT = Kind.RATE, Kind.SPENT

Wanted = Sequence[tuple[Meter, float]]
Taken = Sequence[tuple[Meter, float, float]]


class Rate:
    """How full a bucket was, and when."""

    __slots__ = ("at", "back", "each", "level")

    def __init__(self, level: float, at: float, each: float) -> None:
        self.level = level
        self.at = at
        self.each = each  # seconds that one of it takes to drain
        self.back = 0.0  # what was taken out again, so that those behind it have moved up

    @property
    def empty(self) -> float:
        """When it will have drained."""
        return self.at + self.level * self.each if self.level > 0.0 else self.at

    def level_at(self, now: float, meter: Meter) -> float:
        """Return how full it is now."""
        drained = (now - self.at) * meter.pace if now >= self.at else self.restart(now)
        return self.level - drained if self.level > drained else 0.0

    def take_out(self, depth: float, since: float, now: float) -> float:
        """Take out again one that came in `since`; return how much of it was still in there.

        `depth` was the level with it, and `back`. A bucket drains in the order in which it was
        filled. What has drained is not given back once more: else a caller who waits with all that
        it may have could have as much again at the end.
        """
        ahead = depth - self.back - (now - since) / self.each
        rest = min(1.0, ahead)
        if rest <= 0.0:
            return 0.0
        level = self.level - (now - self.at) / self.each
        if level - ahead > SLACK:
            # Those before it have not moved. To take them for nearer than they are does no harm.
            self.back += rest
        self.level, self.at = max(0.0, level - rest), now
        return rest

    def restart(self, now: float) -> float:
        """Begin again where a clock was set back to, do not wait for it: nothing has drained."""
        self.at = now
        return 0.0


class Account:
    """What is held by whom, and what is spent."""

    __slots__ = ("begins", "bundled", "ends", "held", "owners", "spent")

    def __init__(self, begins: float = 0.0, ends: float = inf) -> None:
        self.begins = begins
        self.ends = ends
        self.spent = 0.0
        self.held = 0.0
        self.owners: dict[str, float] = {}
        self.bundled = 0.0  # held too, but by whom nobody asks: it was taken in a bundle

    def hold(self, owner: str, amount: float) -> None:
        """Add to what an owner holds."""
        self.owners[owner] = self.owners.get(owner, 0.0) + amount
        self.held += amount

    def give_back(self, owner: str, amount: float) -> float:
        """Take away from what an owner holds, and from nobody else; return how much it was."""
        mine = self.owners.get(owner)
        if mine is None:
            return 0.0
        if mine - amount > TINY:
            self.owners[owner] = mine - amount
            self.held -= amount
            return amount
        del self.owners[owner]
        self.held = self.held - mine if self.owners else 0.0
        return mine


class Counters:
    """Rates and accounts by name."""

    def __init__(self) -> None:
        self.rates: OrderedDict[str, Rate] = OrderedDict()
        self.holds: OrderedDict[str, Account] = OrderedDict()
        self.budgets: OrderedDict[str, Account] = OrderedDict()
        self.created = 0  # since somebody last looked for what can be forgotten
        self.forgotten = 0  # how many were
        self._calendar = Calendar()

    def take(self, wanted: Wanted, owner: str, now: float, wall: float) -> Grant:
        """Take all of it or nothing."""
        found: list[tuple[Rate | Account, float]] = []
        refused: tuple[int, ...] = ()
        for meter, amount in wanted:
            state: Rate | Account
            if meter.kind is RATE:
                state = self.rate(meter, now)
                used = state.level_at(now, meter)
                fits = used + amount <= most(meter)
            else:
                state = self._account(meter, wall)
                used = state.spent + state.held + state.bundled
                fits = used + amount <= meter.limit
                if meter.kind is SPENT and amount <= 0.0:
                    fits = used < meter.limit  # an estimate of nothing does not slip through
            if not fits and meter.hard:
                refused += (len(found),)
            found.append((state, used))
        if refused:
            return Grant(False, self._refusals(wanted, found, refused, wall), owner, refused)
        readings = []
        for (meter, amount), (state, used) in zip(wanted, found, strict=True):
            used += amount
            if isinstance(state, Rate):
                state.level, state.at, state.each = used, now, meter.each
            else:
                state.hold(owner, amount)
            readings.append(self._reading(meter, used, wall))
        return Grant(True, tuple(readings), owner)

    def settle(self, taken: Taken, owner: str, now: float, wall: float) -> None:
        """Put what it really was in the place of what was taken."""
        for meter, amount, actual in taken:
            if meter.kind is RATE:
                rate = self.rate(meter, now)
                rate.level = max(0.0, rate.level_at(now, meter) + actual - amount)
                rate.at, rate.each = now, meter.each
                if actual < amount:
                    rate.back += amount - actual
            else:
                account = self._account(meter, wall)
                account.give_back(owner, amount)
                if meter.kind is SPENT:
                    account.spent = max(0.0, account.spent + actual)

    def rate(self, meter: Meter, now: float) -> Rate:
        """Return what is counted of a rate, until something is forgotten."""
        return self.rates.get(meter.name) or self._new_rate(meter, now)

    def place(self, meter: Meter) -> Account:
        """Return what is held of a meter, until something is forgotten."""
        return self._account(meter, 0.0)

    def read(self, meters: Sequence[Meter], now: float, wall: float) -> tuple[Reading, ...]:
        """Tell how they stand."""
        return tuple(self._reading(meter, self._used(meter, now, wall), wall) for meter in meters)

    def forget(self, now: float, wall: float) -> None:
        """Look at some of the oldest and forget what is as good as new: twice what was created.

        What is forgotten is full from then on: whoever has kept it is refused, and finds it anew.
        """
        look, self.created = 2 * self.created, 0
        for _ in range(min(look, len(self.rates))):
            name, rate = self.rates.popitem(last=False)
            if rate.empty > now:
                self.rates[name] = rate
            else:
                rate.level = inf
                self.forgotten += 1
        for accounts in (self.holds, self.budgets):
            for _ in range(min(look, len(accounts))):
                name, account = accounts.popitem(last=False)
                if (
                    account.owners
                    or account.bundled
                    or (account.spent > 0.0 and wall < account.ends)
                ):
                    accounts[name] = account
                else:
                    account.held = inf
                    self.forgotten += 1

    def _used(self, meter: Meter, now: float, wall: float) -> float:
        if meter.kind is RATE:
            rate = self.rates.get(meter.name)
            return rate.level_at(now, meter) if rate is not None else 0.0
        account = (self.budgets if meter.kind is SPENT else self.holds).get(meter.name)
        if account is None:
            return 0.0
        if wall >= account.ends:
            self._turn(account, meter, wall)
        return account.spent + account.held + account.bundled

    def _new_rate(self, meter: Meter, now: float) -> Rate:
        rate = self.rates[meter.name] = Rate(0.0, now, meter.each)
        self.created += 1
        return rate

    def _account(self, meter: Meter, wall: float) -> Account:
        if meter.kind is not SPENT:
            account = self.holds.get(meter.name)
            if account is None:
                account = self.holds[meter.name] = Account()
                self.created += 1
            return account
        account = self.budgets.get(meter.name)
        if account is None:
            account = self.budgets[meter.name] = Account(*self._calendar.at(meter.window, wall))
            self.created += 1
        elif wall >= account.ends:
            self._turn(account, meter, wall)
        return account

    def _turn(self, account: Account, meter: Meter, wall: float) -> None:
        begins, ends = self._calendar.at(meter.window, wall)
        if begins > account.begins:
            account.spent = 0.0
            account.begins = begins
        account.ends = ends

    def _reading(self, meter: Meter, used: float, wall: float) -> Reading:
        if meter.kind is RATE:
            return Reading(meter.limit - used, _drains_in(used, meter))
        if meter.kind is SPENT:
            return Reading(meter.limit - used, self._calendar.at(meter.window, wall)[1] - wall)
        return Reading(meter.limit - used, 0.0)

    def _refusals(
        self,
        wanted: Wanted,
        found: Sequence[tuple[Rate | Account, float]],
        refused: tuple[int, ...],
        wall: float,
    ) -> tuple[Reading, ...]:
        readings = []
        for index, (_, used) in enumerate(found):
            meter, amount = wanted[index]
            reading = self._reading(meter, used, wall)
            if index in refused:
                reading = reading._replace(retry_in=_fits_in(amount, used, meter, reading))
            readings.append(reading)
        return tuple(readings)


def most(meter: Meter) -> float:
    """Return the level that a rate may come to."""
    return meter.limit * _ABOVE_ONE + SLACK


def _fits_in(wish: float, used: float, meter: Meter, reading: Reading) -> float:
    if wish > (most(meter) if meter.kind is RATE else meter.limit):
        return inf
    if meter.kind is RATE:
        return _drains_in(used + wish - meter.limit, meter)
    if meter.kind is SPENT:
        return reading.resets_in if meter.limit > 0.0 else inf
    return 0.0


def _drains_in(level: float, meter: Meter) -> float:
    if level <= 0.0:
        return 0.0
    return level * meter.each
