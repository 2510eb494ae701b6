"""How deep a request stands in its rates, so that it can be taken out of them again.

Who is refused after all, for want of room behind the limits, is not to be the poorer by a request.
Where the rates are counted by this very process, they are the rates themselves. Of those in a store
a process knows what it has let in by itself: others can only have pushed that further back.
"""

from collections.abc import Sequence

from llmproxy.store.counters import Rate

# When it was let in, the rates that have counted it, and of each its level then with what had been
# taken out of it before. A plain tuple, for every request has one.
Depths = tuple[float, Sequence[Rate], tuple[float, ...]]


def fill(rates: Sequence[Rate], now: float) -> Depths:
    """Put a request into rates that are this process's own record of others."""
    levels: tuple[float, ...] = ()
    for rate in rates:
        at = max(now, rate.at)
        rate.level = max(0.0, rate.level - (at - rate.at) / rate.each) + 1.0
        rate.at = at
        levels += (rate.level + rate.back,)
    return now, rates, levels


def take_out(depths: Depths, now: float) -> list[float]:
    """Take a request out of its rates again; return how much of it was still in each."""
    since, rates, levels = depths
    pairs = zip(rates, levels, strict=True)
    return [rate.take_out(level, since, now) for rate, level in pairs]
