"""The script in Redis and `Counters` count alike."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.records import Window
from llmproxy.store.counters import Counters
from llmproxy.store.interface import Kind, Meter, Reading
from llmproxy.store.redis import SCRIPT, RedisStore
from llmproxy.store.urls import place
from tests.support.redis_server import RedisServer

# The same script, by a clock that the test sets.
BY_OUR_CLOCK = SCRIPT.replace(b"redis.call('TIME')", b"redis.call('LRANGE', 'clock', 0, 1)")

WINDOWS: tuple[Window, ...] = ("hour", "day", "month", "total")
METERS = [
    *(Meter(f"r{limit}", Kind.RATE, limit, 60) for limit in (0, 1, 7.5, 1e6)),
    Meter("soft", Kind.RATE, 5, 3600, hard=False),
    *(Meter(f"h{limit}", Kind.HELD, limit) for limit in (0, 1, 8)),
    *(Meter(f"s{window}", Kind.SPENT, 10, window=window) for window in WINDOWS),
    Meter("softer", Kind.SPENT, 3, window="day", hard=False),
]
AMOUNTS = st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.0, 7.5, 10.0, 11.0])
SOME = st.lists(
    st.tuples(st.sampled_from(METERS), AMOUNTS, AMOUNTS), unique_by=lambda each: each[0], max_size=6
)
PAUSES = st.sampled_from(
    [0, 1, 500_000, 7_000_000, 3_600_000_000, 40 * 86_400_000_000, -60_000_000, -86_400_000_000]
)
STEPS = st.lists(st.tuples(st.sampled_from(["take", "settle", "read"]), PAUSES, SOME), max_size=30)


@given(steps=STEPS, start=st.integers(1_500_000_000, 4_000_000_000))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_script_counts_like_the_rest(
    redis_server: RedisServer,
    steps: list[tuple[str, int, list[tuple[Meter, float, float]]]],
    start: int,
) -> None:
    """After any number of takes, settlements and pauses, both say the same."""
    redis_server.clear()
    where = place(f"redis+unix://{redis_server.socket}")
    store = RedisStore(where, script=BY_OUR_CLOCK, lease=1e9, patience=5)
    counters = Counters()
    microseconds = start * 1_000_000
    set_clock(redis_server, microseconds)
    try:
        owner = (await store.take([])).owner
        for what, pause, some in steps:
            microseconds += pause
            set_clock(redis_server, microseconds)
            now = microseconds // 1_000_000 + microseconds % 1_000_000 / 1_000_000
            meters = [meter for meter, _, _ in some]
            if what == "take":
                wanted = [(meter, amount) for meter, amount, _ in some]
                theirs = await store.take(wanted)
                ours = counters.take(wanted, owner, now, now)
                assert (theirs.granted, theirs.refused) == (ours.granted, ours.refused)
                same(theirs.readings, ours.readings)
            elif what == "settle":
                await store.settle(some, owner)
                counters.settle(some, owner, now, now)
            same(await store.read(meters), counters.read(meters, now, now))
    finally:
        await store.aclose()


def same(ones: tuple[Reading, ...], others: tuple[Reading, ...]) -> None:
    """Compare readings, but for the last bits: sums were made in another order."""
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert tuple(one) == pytest.approx(tuple(other), rel=1e-9, abs=1e-6)


def set_clock(server: RedisServer, microseconds: int) -> None:
    """Say what time it is for the script."""
    server.ask("DEL", "clock")
    server.ask("RPUSH", "clock", str(microseconds // 1_000_000), str(microseconds % 1_000_000))
