"""Meters that are always asked together and counted in this very process: the shortest way.

`Counters` takes any meters in any order and answers with a record for each. Most requests meet the
same few rates and places every time, so these are looked up once and asked in one go, without a
record. What is counted are the very same rates and accounts, and a test holds the two ways side
by side; whoever is refused here asks `Counters` why.
"""

from collections.abc import Callable, Sequence

from llmproxy.store.counters import Account, Counters, Rate, most
from llmproxy.store.interface import Kind, Meter


class BundledRate:
    """One rate of a bundle, and how it stands since it was taken from last."""

    __slots__ = (
        "before", "each", "fixed", "left", "limit", "meter", "most", "pace", "rate", "resets_in",
    )  # fmt: skip

    def __init__(self, meter: Meter, fixed: float, rate: Rate) -> None:
        self.meter = meter
        self.fixed = fixed  # what each request takes of it; 0 = its tokens
        self.rate = rate
        # Of the meter, without the way there.
        self.limit = meter.limit
        self.most = most(meter)
        self.pace = meter.pace
        self.each = meter.each
        self.before = 0.0
        self.left = 0.0
        self.resets_in = 0.0


class Bundle:
    """Rates and places of one caller. Time never steps back here: it is the monotonic clock's."""

    def __init__(
        self,
        counters: Counters,
        meters: Sequence[tuple[Meter, float]],
        clock: Callable[[], float],
    ) -> None:
        """Each meter comes with what a request takes of it; 0 = its tokens."""
        self._counters = counters
        self._clock = clock
        now = clock()
        self.rates = {
            number: BundledRate(meter, fixed, counters.rate(meter, now))
            for number, (meter, fixed) in enumerate(meters)
            if meter.kind is Kind.RATE
        }
        self._rates = list(self.rates.values())
        self._by_tokens = [line for line in self._rates if not line.fixed]
        self._held = [meter for meter, _ in meters if meter.kind is Kind.HELD]
        self._places = self._find_places()
        self._forgotten = counters.forgotten

    def take(self, tokens: float) -> bool:
        """Take one request with so many tokens, or nothing."""
        now = self._clock()
        if self._forgotten != self._counters.forgotten:
            self._look_up(now)
        for place, last in self._places:
            if place.held > last:
                return False
        for line in self._rates:
            rate = line.rate
            used = rate.level - (now - rate.at) * line.pace
            if used < 0.0:
                used = 0.0
            line.before = used
            used += line.fixed or tokens
            if used > line.most:
                self._take_back(line)
                return False
            rate.level = used
            rate.at = now
            line.left = line.limit - used
            line.resets_in = used * line.each
        for place, _ in self._places:
            place.held += 1.0
            place.bundled += 1
        return True

    def settle(self, tokens: float, actual: float) -> None:
        """Put what a request really was in the place of what was taken; its place is free."""
        if self._forgotten != self._counters.forgotten:
            self._look_up(self._clock())
        more = actual - tokens
        for line in self._by_tokens:
            rate = line.rate
            if more > 0.0:
                now = self._clock()
                level = rate.level - (now - rate.at) * line.pace
                rate.level = more + level if level > 0.0 else more
                rate.at = now
            else:
                # What is given back may be taken off now or when it is next looked at: what
                # drains in between is the same.
                level = rate.level + more
                rate.level = level if level > 0.0 else 0.0
        for place, _ in self._places:
            place.held -= 1.0
            place.bundled -= 1

    def _take_back(self, refusing: BundledRate) -> None:
        """Undo what was taken of the rates before the one that refuses."""
        for line in self._rates:
            if line is refusing:
                return
            line.rate.level = line.before

    def _look_up(self, now: float) -> None:
        """Find the rates and accounts again: some that stood at nothing were forgotten."""
        for line in self._rates:
            line.rate = self._counters.rate(line.meter, now)
        self._places = self._find_places()
        self._forgotten = self._counters.forgotten

    def _find_places(self) -> list[tuple[Account, float]]:
        # The second is how many may be held before one more is taken.
        return [(self._counters.place(meter), meter.limit - 1.0) for meter in self._held]
