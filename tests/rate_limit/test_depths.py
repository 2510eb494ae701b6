"""Taking a request out of its rates again: all of what is still in there, and never more."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.rate_limit.depths import Depths, fill, take_out
from llmproxy.store.counters import Counters, Rate
from llmproxy.store.interface import Kind, Meter

LIMIT = 5
METER = Meter("requests", Kind.RATE, LIMIT, 50)  # one drains in 10 s
WAITS = st.sampled_from([0.0, 0.01, 1.0, 4.0, 9.0, 10.0, 25.0, 60.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.booleans()),  # whether by this process
        st.tuples(st.just("refuse"), st.integers(0, 9)),
        st.tuples(st.just("wait"), WAITS),
    ),
    max_size=60,
)


class Requests:
    """Requests of several processes that one limit lets in, and some of which are refused later."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.own = Rate(0.0, 0.0, METER.each)  # what this process has let in
        self.begun: list[float] = []  # of those who are not refused
        self.open: list[tuple[float, Depths]] = []

    @property
    def rate(self) -> Rate:
        return self.counters.rate(METER, self.now)

    @property
    def level(self) -> float:
        return self.rate.level_at(self.now, METER)

    def ask(self, *, own: bool) -> bool:
        """Make a request; whoever it is, the limit counts it."""
        if not self.counters.take([(METER, 1.0)], "", self.now, 0.0).granted:
            return False
        self.begun.append(self.now)
        if own:
            self.open.append((self.now, fill([self.own], self.now)))
        else:
            self.open.append((self.now, (self.now, [self.rate], (self.level + self.rate.back,))))
        return True

    def refuse(self, which: int) -> float:
        """Refuse one of them after all; return how much of it came back."""
        since, depths = self.open.pop(which)
        self.begun.remove(since)
        (rest,) = take_out(depths, self.now)
        if depths[1] == [self.own]:
            self.counters.settle([(METER, 1.0, 1.0 - rest)], "", self.now, 0.0)
        return rest


def level_of(times: Iterable[float], now: float) -> float:
    """Return how full a rate is into which only these were put."""
    level, at = 0.0, 0.0
    for each in sorted(times):
        level, at = max(0.0, level - (each - at) / METER.each) + 1.0, each
    return max(0.0, level - (now - at) / METER.each)


@given(steps=STEPS)
def test_never_is_more_let_in_than_the_limit(steps: list[tuple[str, float]]) -> None:
    """By those who are not refused, in whatever time: the rate is never emptier than they make it.

    Whoever is refused, how late, in what order, and whichever process it was.
    """
    requests = Requests()
    for what, which in steps:
        if what == "wait":
            requests.now += which
        elif what == "ask":
            requests.ask(own=bool(which))
        elif requests.open:
            requests.refuse(int(which) % len(requests.open))
        assert requests.level >= level_of(requests.begun, requests.now) - 1e-6
        assert level_of(requests.begun, requests.now) <= LIMIT + 1e-5


@given(
    before=st.integers(0, LIMIT - 1),
    refused=st.integers(1, 20),
    own=st.booleans(),
)
def test_who_is_refused_at_once_has_lost_nothing(before: int, refused: int, own: bool) -> None:
    """However often that happens, and as near to the limit as it may be."""
    requests = Requests()
    for _ in range(before):
        requests.ask(own=own)
    for _ in range(refused):
        assert requests.ask(own=own)
        assert requests.refuse(-1) == pytest.approx(1)

    assert [requests.ask(own=own) for _ in range(LIMIT - before + 1)] == (
        [True] * (LIMIT - before) + [False]
    )


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("order", [(2, 2, 2), (4, 3, 2)], ids=["first_first", "last_first"])
def test_who_has_waited_in_vain_has_lost_nothing(order: tuple[int, ...], own: bool) -> None:
    """Two are at work and three wait: after 15 s the limit stands as if these had never come."""
    requests = Requests()
    for _ in range(LIMIT):
        requests.ask(own=own)
    requests.now += 15
    for which in order:
        requests.refuse(which)

    assert requests.level == pytest.approx(level_of(requests.begun, requests.now), abs=1e-6)


def test_what_has_drained_is_not_given_back_once_more() -> None:
    """All that one may have waits, drains and is refused: it is not all there again beside it."""
    requests = Requests()
    for _ in range(LIMIT):
        requests.ask(own=False)
    requests.now += 25
    assert [requests.ask(own=False) for _ in range(3)] == [True, True, False]
    for _ in range(LIMIT):
        requests.refuse(0)

    assert [requests.ask(own=False) for _ in range(4)] == [True, True, True, False]


def test_what_was_forgotten_stays_so() -> None:
    """It had drained, and those who come later have another rate."""
    requests = Requests()
    requests.ask(own=False)
    requests.now += 60
    requests.counters.created = 10
    requests.counters.forget(requests.now, 0.0)
    for _ in range(LIMIT):
        requests.ask(own=False)

    assert requests.refuse(0) == 0
    assert not requests.ask(own=False)


@pytest.mark.parametrize("first", [True, False], ids=["own", "of_others"])
@pytest.mark.parametrize("then", [True, False], ids=["then_own", "then_of_others"])
def test_who_moved_up_has_drained_sooner(first: bool, then: bool) -> None:
    """When those before it were taken out; it is known as far as it was by this process."""
    requests = Requests()
    for own in (first, first, first, then, then):
        requests.ask(own=own)
    assert [requests.refuse(0) for _ in range(3)] == [1, 1, 1]
    requests.now += 20

    assert [requests.ask(own=False) for _ in range(LIMIT)] == [True] * LIMIT
    assert [requests.refuse(0) for _ in range(2)] == [0, 0]
    assert not requests.ask(own=False)


@pytest.mark.parametrize("own", [True, False])
def test_what_came_before_has_drained_too(own: bool) -> None:
    """A request stands no deeper for those who were there long ago."""
    requests = Requests()
    for _ in range(LIMIT):
        requests.ask(own=own)
    requests.now += 60
    requests.ask(own=own)
    requests.now += 15

    assert requests.refuse(LIMIT) == 0
