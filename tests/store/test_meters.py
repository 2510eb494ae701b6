"""Taking, settling and reading, in every kind of store."""

import asyncio
from math import inf

import pytest

from llmproxy.store.interface import Kind, Meter, Store, meter_name
from llmproxy.store.memory import MemoryStore

MINUTE = Meter("minute", Kind.RATE, 60, 60)
TOKENS = Meter("tokens", Kind.RATE, 60, 60, provisional=True)
SLOTS = Meter("slots", Kind.HELD, 3)
MONEY = Meter("money", Kind.SPENT, 10, window="month")
ALL = (MINUTE, SLOTS, MONEY)

about = pytest.approx


async def test_what_is_taken_is_missing(store: Store) -> None:
    """A grant tells what is left of each meter, in the order in which they were named."""
    grant = await store.take([(MINUTE, 30), (SLOTS, 1), (MONEY, 2.5)])

    assert grant.granted and grant.refused == ()
    assert [reading.left for reading in grant.readings] == [about(30, abs=0.1), 2, 7.5]
    assert grant.readings[0].resets_in == about(30, abs=0.1)
    assert grant.readings[1].resets_in == 0
    assert 0 < grant.readings[2].resets_in <= 31 * 86400
    assert [reading.retry_in for reading in grant.readings] == [0, 0, 0]


async def test_all_or_nothing(store: Store) -> None:
    """Where one meter is in the way, nothing is taken from any."""
    await store.take([(SLOTS, 3)])

    grant = await store.take([(MINUTE, 30), (SLOTS, 1), (MONEY, 2.5)])

    assert not grant.granted and grant.refused == (1,)
    assert [reading.left for reading in await store.read(ALL)] == [60, 0, 10]


async def test_a_refusal_tells_when_it_would_fit(store: Store) -> None:
    """A rate tells how long it has to drain, a budget when its window ends; inf is never."""
    await store.take([(MINUTE, 60), (SLOTS, 3), (MONEY, 10)])

    grant = await store.take([(MINUTE, 6), (SLOTS, 1), (MONEY, 1)])
    hopeless = await store.take([(MINUTE, 61), (SLOTS, 4), (MONEY, 11)])

    assert grant.refused == (0, 1, 2)
    assert grant.readings[0].retry_in == about(6, abs=0.2)
    assert grant.readings[1].retry_in == 0
    assert grant.readings[2].retry_in == grant.readings[2].resets_in
    assert [reading.retry_in for reading in hopeless.readings] == [inf, inf, inf]


async def test_a_soft_meter_is_counted_and_never_refuses(store: Store) -> None:
    """It goes below zero, and says so."""
    soft = Meter("soft", Kind.SPENT, 10, window="day", hard=False)

    await store.take([(soft, 8)])
    grant = await store.take([(soft, 8)])

    assert grant.granted
    assert grant.readings[0].left == -6


async def test_a_budget_that_is_spent_does_not_let_an_estimate_of_nothing_through(
    store: Store,
) -> None:
    """Nothing fits only where something would."""
    assert (await store.take([(MONEY, 0)])).granted
    await store.take([(MONEY, 10)])

    assert not (await store.take([(MONEY, 0)])).granted


async def test_what_it_really_was_replaces_what_was_taken(store: Store) -> None:
    """A rate and a budget are charged the truth; a slot is free again."""
    grant = await store.take([(MINUTE, 30), (SLOTS, 1), (MONEY, 5)])

    await store.settle([(MINUTE, 30, 10), (SLOTS, 1, 0), (MONEY, 5, 7)], grant.owner)

    left = [reading.left for reading in await store.read(ALL)]
    assert left == [about(50, abs=0.1), 3, about(3)]


async def test_a_provisional_rate_counts_like_any_other(store: Store) -> None:
    """Whoever settles in time finds no difference."""
    grant = await store.take([(TOKENS, 30)])
    assert [reading.left for reading in grant.readings] == [about(30, abs=0.1)]
    refused = await store.take([(TOKENS, 36)])
    assert refused.readings[0].retry_in == about(6, abs=0.2)

    await store.settle([(TOKENS, 30, 10)], grant.owner)
    assert (await store.read([TOKENS]))[0].left == about(50, abs=0.1)

    grant = await store.take([(TOKENS, 1)])
    await store.settle([(TOKENS, 1, 90)], grant.owner)
    assert (await store.read([TOKENS]))[0].left == about(-40, abs=0.2)


async def test_what_has_drained_is_not_charged_when_it_is_settled(store: Store) -> None:
    """However long a request takes: what was reserved for it was counted, and has drained."""
    fast = Meter("fast", Kind.RATE, 1e6, 10, provisional=True)
    grant = await store.take([(fast, 30)])
    await asyncio.sleep(1.2)  # longer than a rate is kept that has drained

    await store.settle([(fast, 30, 30)], grant.owner)

    assert (await store.read([fast]))[0].left == 1e6


async def test_settling_may_exceed_a_limit(store: Store) -> None:
    """What was used was used: settling never refuses."""
    grant = await store.take([(MINUTE, 1), (MONEY, 1)])

    await store.settle([(MINUTE, 1, 90), (MONEY, 1, 25)], grant.owner)

    assert [reading.left for reading in await store.read([MINUTE, MONEY])] == [
        about(-30, abs=0.1),
        -15,
    ]
    assert not (await store.take([(MINUTE, 1)])).granted


async def test_nothing_goes_below_zero(store: Store) -> None:
    """Giving back more than there is gives no credit."""
    grant = await store.take([(MINUTE, 1), (SLOTS, 1), (MONEY, 1)])

    for _ in range(2):
        await store.settle([(MINUTE, 30, 0), (SLOTS, 2, 0), (MONEY, 2, 0)], grant.owner)

    assert [reading.left for reading in await store.read(ALL)] == [60, 3, 10]


async def test_nobody_gives_back_what_others_hold(store: Store) -> None:
    """An owner that is unknown holds nothing; what it has spent counts all the same."""
    await store.take([(SLOTS, 2), (MONEY, 4)])

    await store.settle([(SLOTS, 2, 0), (MONEY, 4, 1)], "0123456789abcdef")

    assert [reading.left for reading in await store.read([SLOTS, MONEY])] == [1, 5]


async def test_a_limit_of_nothing_lets_nothing_through(store: Store) -> None:
    """And does not divide by it."""
    nothing = [Meter("a", Kind.RATE, 0, 60), Meter("b", Kind.HELD, 0), Meter("c", Kind.SPENT, 0)]

    grant = await store.take([(meter, 1) for meter in nothing])

    assert grant.refused == (0, 1, 2)
    assert [reading.retry_in for reading in grant.readings] == [inf, inf, inf]


async def test_a_limit_is_exact_under_a_burst(store: Store) -> None:
    """Of a thousand at once, exactly as many come in as there is room for."""
    day = Meter("day", Kind.RATE, 100, 86400)

    grants = await asyncio.gather(*(store.take([(day, 1)]) for _ in range(1000)))

    assert sum(grant.granted for grant in grants) == 100


async def test_kinds_with_the_same_name_do_not_meet(store: Store) -> None:
    """A rate, a number of slots and a budget may have one name."""
    alike = [Meter("same", kind, 10, 60) for kind in Kind]

    for number, meter in enumerate(alike, 1):
        await store.take([(meter, number)])

    left = [reading.left for reading in await store.read(alike)]
    assert left == [about(9, abs=0.1), 8, 7]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("a:b", "c"), ("a", "b:c"), id="colons"),
        pytest.param(("{a}", "b"), ("a", "{b}"), id="hash_tags"),
        pytest.param(("a%3A", "b"), ("a:", "b"), id="escapes"),
        pytest.param(("*",), ("**",), id="globs"),
        pytest.param(("\udc80",), ("\udc81",), id="not_text"),
        pytest.param(("é" * 1024,), ("é" * 1023,), id="long"),
        pytest.param(("a\0b",), ("a\0c",), id="zeros"),
        pytest.param(("a b 1",), ("a b 2",), id="spaces"),
    ],
)
async def test_names_never_meet(store: Store, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Whatever subjects are called, each has its own meters."""
    mine, theirs = (
        [Meter(meter_name(*parts), kind, 10, 60) for kind in Kind] for parts in (one, other)
    )

    await store.take([(meter, 10) for meter in mine])

    assert (await store.take([(meter, 10) for meter in theirs])).granted
    assert not (await store.take([(meter, 1) for meter in mine])).granted


async def test_memory_forgets_what_has_drained() -> None:
    """A million subjects that were seen once leave nothing behind."""
    now = 1e9
    store = MemoryStore(steady=lambda: now, wall=lambda: now)
    for number in range(50_000):
        now += 0.01
        name = str(number)
        grant = await store.take(
            [(Meter(name, kind, 60, 60), 1) for kind in (Kind.RATE, Kind.HELD)]
        )
        await store.settle([(Meter(name, Kind.HELD, 60), 1, 0)], grant.owner)
        await store.put(f"nonce:{number}", b"", within=1)

    assert len(store._counters.rates) < 500
    assert len(store._counters.holds) < 500
    assert len(store._records) < 500
