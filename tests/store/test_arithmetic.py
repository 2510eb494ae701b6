"""The script in Redis and `NotingCounters` count alike."""

from collections.abc import Mapping
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.records import Window
from llmproxy.store.counters import Account
from llmproxy.store.interface import Kind, Meter, Reading
from llmproxy.store.notes import NotingCounters
from llmproxy.store.redis import SCRIPT, RedisStore
from llmproxy.store.urls import place
from tests.support.redis_server import RedisServer

# The same script, by a clock that the test sets.
BY_OUR_CLOCK = SCRIPT.replace(b"redis.call('TIME')", b"redis.call('LRANGE', 'clock', 0, 1)")

WINDOWS: tuple[Window, ...] = ("hour", "day", "month", "total")
METERS = [
    *(Meter(f"r{limit}", Kind.RATE, limit, 60) for limit in (0, 1, 7.5, 1e6)),
    Meter("soft", Kind.RATE, 5, 3600, hard=False),
    *(Meter(f"p{limit}", Kind.RATE, limit, 60, provisional=True) for limit in (7.5, 1e6)),
    Meter("softly", Kind.RATE, 5, 3600, hard=False, provisional=True),
    *(Meter(f"h{limit}", Kind.HELD, limit) for limit in (0, 1, 8)),
    *(Meter(f"s{window}", Kind.SPENT, 10, window=window) for window in WINDOWS),
    Meter("softer", Kind.SPENT, 3, window="day", hard=False),
]
PROVISIONAL = [meter for meter in METERS if meter.provisional]
AMOUNTS = st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.0, 7.5, 10.0, 11.0])
PAUSES = st.sampled_from(
    [0, 1, 500_000, 7_000_000, 3_600_000_000, 40 * 86_400_000_000, -60_000_000, -86_400_000_000]
)
WHATS = st.sampled_from(["take", "take", "settle", "settle", "settle for the dead", "read", "die"])
WHOSE = st.integers(0, 1)  # which of two processes does it
Step = tuple[str, int, int, list[tuple[Meter, float, float]]]


def steps_with(meters: list[Meter]) -> st.SearchStrategy[list[Step]]:
    """Any steps that ask for some of these."""
    some = st.lists(
        st.tuples(st.sampled_from(meters), AMOUNTS, AMOUNTS),
        unique_by=lambda each: each[0],
        max_size=6,
    )
    return st.lists(st.tuples(WHATS, WHOSE, PAUSES, some), max_size=30)


# Where one of many meters is in the way, nothing is taken: so those that are seldom are also
# asked by themselves.
@pytest.mark.parametrize(
    "steps", [steps_with(METERS), steps_with(PROVISIONAL)], ids=["all", "provisional"]
)
@given(data=st.data(), start=st.integers(1_500_000_000, 4_000_000_000))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_script_counts_like_the_rest(
    redis_server: RedisServer,
    steps: st.SearchStrategy[list[Step]],
    data: st.DataObject,
    start: int,
) -> None:
    """After any number of takes, settlements, pauses and deaths, both say the same."""
    redis_server.clear()
    where = place(f"redis+unix://{redis_server.socket}")

    def new_store() -> RedisStore:
        return RedisStore(where, script=BY_OUR_CLOCK, lease=1e9, patience=5)

    stores = [new_store(), new_store()]
    counters = NotingCounters()
    microseconds = start * 1_000_000
    set_clock(redis_server, microseconds)
    dead = "0123456789abcdef"
    try:
        owners = [(await store.take([])).owner for store in stores]
        for what, whose, pause, some in data.draw(steps):
            microseconds += pause
            set_clock(redis_server, microseconds)
            now = microseconds // 1_000_000 + microseconds % 1_000_000 / 1_000_000
            store, owner = stores[whose], owners[whose]
            meters = [meter for meter, _, _ in some]
            if what == "take":
                wanted = [(meter, amount) for meter, amount, _ in some]
                theirs = await store.take(wanted)
                ours = counters.take(wanted, owner, now, now)
                assert (theirs.granted, theirs.refused) == (ours.granted, ours.refused)
                same(theirs.readings, ours.readings)
            elif what.startswith("settle"):
                owner = owner if what == "settle" else dead
                await store.settle(some, owner)
                counters.settle(some, owner, now, now)
            elif what == "die":
                await store.aclose()
                # It is as if all that it has left were settled with nothing.
                settled = [
                    (meter, inf, 0.0) for meter in METERS if has_left(counters, owner, meter)
                ]
                counters.settle(settled, owner, now, now)
                dead = owner
                stores[whose] = new_store()
                owners[whose] = (await stores[whose].take([])).owner
                meters = PROVISIONAL
            same(await stores[whose].read(meters), counters.read(meters, now, now))
    finally:
        for store in stores:
            await store.aclose()


def has_left(counters: NotingCounters, owner: str, meter: Meter) -> bool:
    """Tell whether there is something of a meter to be given back when an owner dies."""
    if meter.kind is Kind.RATE:
        accounts: Mapping[str, Account] = counters.notes
    else:
        accounts = counters.holds if meter.kind is Kind.HELD else counters.budgets
    return meter.name in accounts and accounts[meter.name].owners.get(owner, 0.0) > 0.0


def same(ones: tuple[Reading, ...], others: tuple[Reading, ...]) -> None:
    """Compare readings, but for the last bits: sums were made in another order."""
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert tuple(one) == pytest.approx(tuple(other), rel=1e-9, abs=1e-6)


def set_clock(server: RedisServer, microseconds: int) -> None:
    """Say what time it is for the script."""
    server.ask("DEL", "clock")
    server.ask("RPUSH", "clock", str(microseconds // 1_000_000), str(microseconds % 1_000_000))
