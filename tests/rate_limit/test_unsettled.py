"""What is kept while the store is away."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.rate_limit.unsettled import Unsettled
from llmproxy.store.interface import Kind, Meter

RATE = Meter("rate", Kind.RATE, 60, period=60)  # one a second
TOKENS = Meter("tokens", Kind.RATE, 60, period=60, provisional=True)
HELD = Meter("held", Kind.HELD, 8)
SPENT = Meter("spent", Kind.SPENT, 100, window="day")


def test_what_is_held_is_given_back_under_the_same_lease() -> None:
    """Added up for each owner: who comes back as another has nothing to give back."""
    kept = Unsettled(workers=1)
    for owner in ("a", "a", "b"):
        kept.keep((HELD, 1, 0), owner, 0)
        kept.keep((SPENT, 10, 4), owner, 0)

    assert kept.take_out(3600, "a") == {
        "a": [(HELD, 2, 0), (SPENT, 20, 8)],
        "b": [(HELD, 1, 0), (SPENT, 10, 4)],
    }
    assert not len(kept)


def test_what_is_owed_to_a_rate_drains_meanwhile() -> None:
    """Half a minute later, half a minute's worth has gone; a long time later all of it."""
    for waited, owed in [(0, 40), (30, 10), (3600, 0)]:
        kept = Unsettled(workers=1)
        kept.keep((RATE, 0, 40), "", 100)
        expected = {"": [(RATE, 0, owed)]} if owed else {}
        assert kept.take_out(100 + waited, "") == expected


def test_each_worker_drains_its_own_share() -> None:
    """Four workers that each keep a debt may not each drain all of it at the whole pace."""
    kept = Unsettled(workers=4)
    kept.keep((RATE, 0, 40), "", 0)

    assert kept.take_out(40, "a") == {"": [(RATE, 0, 30)]}


def test_late_news_takes_nothing_away_from_what_came_since() -> None:
    """What was reserved too much has drained like everything else, and is not given back."""
    kept = Unsettled(workers=4)
    kept.keep((RATE, 50, 10), "a", 0)

    assert kept.take_out(30, "a") == {"a": [(RATE, 10, 0)]}

    kept.keep((RATE, 50, 10), "a", 0)
    assert kept.take_out(60, "a") == {}


def test_a_guess_of_who_still_lives_is_taken_back_whole() -> None:
    """All that was reserved is settled; what is not drained of the difference changes the rate."""
    for waited, actual in [(0, 10), (30, 40), (3600, 50)]:
        kept = Unsettled(workers=4)
        kept.keep((TOKENS, 50, 10), "a", 0)
        assert kept.take_out(waited, "a") == {"a": [(TOKENS, 50, actual)]}

    for waited, actual in [(0, 90), (40, 80), (3600, 50)]:
        kept.keep((TOKENS, 50, 90), "a", 0)
        assert kept.take_out(waited, "a") == {"a": [(TOKENS, 50, actual)]}


def test_a_guess_of_who_was_given_up_is_not_given_back_twice() -> None:
    """It came back with the lease: what was used is owed, and drains like every debt."""
    for waited, actual in [(0, 30), (40, 20)]:
        kept = Unsettled(workers=4)
        kept.keep((TOKENS, 50, 10), "a", 0)
        kept.keep((TOKENS, 50, 20), "a", 0)
        assert kept.take_out(waited, "b") == {"a": [(TOKENS, 0, actual)]}

    kept.keep((TOKENS, 50, 10), "a", 0)
    assert kept.take_out(3600, "b") == {}


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0, 10)), max_size=10))
def test_nothing_negative_is_ever_settled(steps: list[tuple[float, float, float]]) -> None:
    """Whatever is kept in whatever order."""
    kept, now = Unsettled(workers=2), 0.0
    for taken, actual, waited in steps:
        now += waited
        for owner, meter in product("ab", (RATE, TOKENS, SPENT)):
            kept.keep((meter, taken, actual), owner, now)

    for entries in kept.take_out(now, "a").values():
        for _, taken, actual in entries:
            assert taken >= 0
            assert actual >= 0


def test_a_budget_gets_all_of_it() -> None:
    """However long the outage was and however often it was tried."""
    kept = Unsettled(workers=4)
    for hour in range(100):
        kept.keep((SPENT, 0, 0.1), "", hour * 3600)
        for owner, entries in kept.take_out(hour * 3600, "a").items():
            for entry in entries:
                kept.keep(entry, owner, hour * 3600)

    [(_, taken, actual)] = kept.take_out(1e9, "a")[""]
    assert taken == 0
    assert actual == pytest.approx(10)


def test_it_is_bounded_and_what_is_dropped_is_counted() -> None:
    """A meter that is kept already goes on to be added up."""
    kept = Unsettled(workers=1, most=3)
    for number in range(5):
        kept.keep((Meter(f"m{number}", Kind.HELD, 1), 1, 0), "a", 0)
    kept.keep((Meter("m0", Kind.HELD, 1), 1, 0), "a", 0)

    assert kept.dropped == 2
    assert [taken for _, taken, _ in kept.take_out(0, "a")["a"]] == [2, 1, 1]
