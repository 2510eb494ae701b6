"""Limits that are always asked together and counted in this very process: the shortest way.

`Counters` takes any meters in any order and answers with a record for each. Most requests meet the
same few rates and places every time, so these are looked up once, asked in one go, and told of in
one text. What is counted are the very same rates and accounts, and a test holds the two ways side
by side; whoever is refused here asks `Counters` why, which may let in one that is over by a hair.
"""

from collections.abc import Sequence
from math import floor
from typing import Any, NamedTuple

from llmproxy.rate_limit.depths import take_out
from llmproxy.rate_limit.openai_headers import HAIR, MILLISECONDS, duration
from llmproxy.store.counters import Account, Rate
from llmproxy.store.interface import Immediate, Meter

# A rate, and what of its limit would else be looked up or worked out for each request: what each
# takes of it (0 = its tokens), its pace, its limit with a hair on it, and the milliseconds that one
# of it takes to drain. A plain tuple is taken apart in a ninth of the time that a named one needs.
BundledRate = tuple[Rate, float, float, float, float]

# What an answer tells, and behind it what `Depths` are: one tuple in the place of two.
Taken = tuple[bytes, float, Sequence[Rate], tuple[float, ...]]


class Told(NamedTuple):
    """A rate that a bundle is made of."""

    meter: Meter
    fixed: float
    form: bytes  # what an answer tells of it, but for the numbers


class Bundle:
    """Rates and places of one caller. Time never steps back here: it is the monotonic clock's."""

    def __init__(
        self, store: Immediate, units: Sequence[Sequence[Told]], held: Sequence[Meter]
    ) -> None:
        """Of each of the `units` an answer tells of one rate: the one with least left."""
        self._counters = store.counters()
        self._clock = store.steady
        self._units = units
        self._meters = held
        # Where that is always the same one, there is one form for all.
        alone = all(len(each) == 1 for each in units)
        self._form = b"".join(each[0].form for each in units) if alone else None
        self._look_up(self._clock())

    def take(self, tokens: float) -> Taken | None:
        """Take one request with so many tokens, or nothing.

        Return what its answer tells of it, and how deep it stands in the rates of requests.
        """
        clock = self._clock  # no method: asked for like one, it would be looked for in vain first
        now = clock()
        for place, last in self._places:
            if place.held + place.bundled > last:
                return self._refuse(place, tokens)
            place.bundled += 1.0
        told: tuple[Any, ...] = ()
        levels: tuple[float, ...] = ()
        for rate, fixed, pace, limit, each in self._rates:
            used = fixed or tokens
            level = rate.level - (now - rate.at) * pace
            if level > 0.0:
                used += level
            if used > limit:
                return self._refuse(rate, tokens)
            rate.level = used
            rate.at = now
            if fixed:
                levels += (used + rate.back,)
            wait = used * each + 0.999999  # rounded up
            # Whole numbers are written into bytes in a third of the time that floats take.
            told += (
                floor(limit - used),
                MILLISECONDS[floor(wait)] if wait < 1000.0 else duration(used * each / 1000),
            )
        form = self._form
        lines = form % told if form is not None else self._strictest(told)
        return lines, now, self._by_request, levels

    def take_out(self, taken: Taken) -> None:
        """Have a request that was refused after all not count; only its places are still held."""
        take_out(taken[1:], self._clock())

    def settle(self, less: float) -> None:
        """Let a request end that took so much less than expected, or more; its place is free."""
        if less < 0.0:
            self._charge(-less)
        else:
            # It may be given back now or when the rate is next looked at: what drains in between
            # is the same, and a level below zero is taken for none by whoever looks. A rate that
            # was forgotten has drained, and there is nothing to give back.
            for rate in self._by_tokens:
                rate.level -= less
        for place in self._held:
            place.bundled -= 1.0

    def _charge(self, more: float) -> None:
        now = self._clock()
        if self._forgotten != self._counters.forgotten:
            self._look_up(now)
        for rate, fixed, pace, _, _ in self._rates:
            if not fixed:
                level = rate.level - (now - rate.at) * pace
                rate.level = more + level if level > 0.0 else more
                rate.at = now

    def _refuse(self, refusing: Rate | Account, tokens: float) -> Taken | None:
        """Take nothing; or try again with those that have taken the place of forgotten ones."""
        self._take_back(refusing, tokens)
        if self._forgotten == self._counters.forgotten:
            return None
        self._look_up(self._clock())
        return self.take(tokens)

    def _take_back(self, refusing: Rate | Account, tokens: float) -> None:
        """Undo what was taken before the one that refuses."""
        for place, _ in self._places:
            if place is refusing:
                return
            place.bundled -= 1.0
        for rate, fixed, *_ in self._rates:
            if rate is refusing:
                return
            rate.level -= fixed or tokens

    def _strictest(self, told: tuple[Any, ...]) -> bytes:
        """Return what is told, where a unit has several rates."""
        numbers = iter(zip(told[::2], told[1::2], strict=True))
        lines = []
        for unit in self._units:
            standing = [(*next(numbers), each.form) for each in unit]
            left, resets_in, form = min(standing, key=lambda each: each[0])
            lines.append(form % (left, resets_in))
        return b"".join(lines)

    def _look_up(self, now: float) -> None:
        """Find the rates and accounts, which are forgotten when they stand at nothing.

        A forgotten one refuses: so it is enough to look whether one was when one has refused.
        """
        counters = self._counters
        self._rates: list[BundledRate] = [
            (counters.rate(meter, now), fixed, meter.pace, meter.limit + HAIR, meter.each * 1000)
            for unit in self._units
            for meter, fixed, _ in unit
        ]
        self._by_tokens = [rate for rate, fixed, *_ in self._rates if not fixed]
        self._by_request = [rate for rate, fixed, *_ in self._rates if fixed]
        self._held = [counters.place(meter) for meter in self._meters]
        # With how many may be held before one more is taken.
        self._places = [
            (place, meter.limit - 1.0)
            for place, meter in zip(self._held, self._meters, strict=True)
        ]
        self._forgotten = counters.forgotten
