"""A bundle counts like `Counters`, of which it is the short way."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.headers import of_lines
from llmproxy.rate_limit.bundle import Bundle, Told
from llmproxy.rate_limit.openai_headers import duration, filled_in, form
from llmproxy.store.counters import Counters
from llmproxy.store.interface import Kind, Meter

OWNER = "this process"
METERS = (
    (Meter("requests a minute", Kind.RATE, 5, 60), 1.0),
    (Meter("requests an hour", Kind.RATE, 12, 3600), 1.0),
    (Meter("tokens", Kind.RATE, 100, 60), 0.0),
    (Meter("more tokens", Kind.RATE, 1e6, 3600), 0.0),
    (Meter("places", Kind.HELD, 3), 1.0),
)
SOME = st.lists(st.sampled_from(METERS), unique_by=lambda each: each[0].name, min_size=1)
TOKENS = st.sampled_from([0.0, 1.0, 7.5, 40.0, 99.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), TOKENS),
        st.tuples(st.just("settle"), TOKENS),
        st.tuples(st.just("wait"), st.sampled_from([0.25, 3.0, 61.0, 7200.0])),
        st.tuples(st.just("forget"), st.just(0.0)),
    ),
    max_size=40,
)


class Clock:
    """A time that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Beneath:
    """Counters by such a clock, as a store gives them."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self.steady: Callable[[], float] = clock

    def counters(self) -> Counters:
        return self._counters

    def take_now(self, wanted: object) -> Any:
        raise NotImplementedError

    def settle_now(self, taken: object, owner: str) -> None:
        raise NotImplementedError


@given(some=SOME, steps=STEPS)
def test_a_bundle_counts_like_the_rest(
    some: list[tuple[Meter, float]], steps: list[tuple[str, float]]
) -> None:
    """Whatever is taken, settled and forgotten in whatever order, both stand alike after it."""
    clock, plain, beneath = Clock(), Counters(), Counters()
    bundle = bundled(beneath, some, clock)
    held: list[float] = []
    for what, amount in steps:
        if what == "wait":
            clock.now += amount
        elif what == "forget":
            beneath.created = 10
            beneath.forget(clock.now, 0.0)
        elif what == "take":
            grant = plain.take(wanted(some, amount), OWNER, clock.now, 0.0)
            assert (bundle.take(amount) is not None) is grant.granted
            if grant.granted:
                held.append(amount)
        elif held:
            taken = held.pop()
            bundle.settle(taken - amount)
            plain.settle(
                [
                    (meter, fixed or taken, 0.0 if meter.kind is Kind.HELD else amount)
                    for meter, fixed in some
                    if not fixed or meter.kind is Kind.HELD
                ],
                OWNER,
                clock.now,
                0.0,
            )
        meters = [meter for meter, _ in some]
        ours, theirs = (each.read(meters, clock.now, 0.0) for each in (beneath, plain))
        for reading, expected in zip(ours, theirs, strict=True):
            assert reading[:2] == near(expected[:2])


def test_two_bundles_share_what_they_have_in_common() -> None:
    """Also when it was forgotten in between, and one of them found it again before the other."""
    clock, counters = Clock(), Counters()
    one, other = (bundled(counters, METERS[:1], clock) for _ in range(2))
    assert one.take(0) is not None
    clock.now += 61
    counters.created = 10
    counters.forget(clock.now, 0.0)
    assert counters.forgotten

    let_in = [each.take(0) is not None for each in (one, other, one, other, one, other)]
    assert let_in == [True] * 5 + [False]


def test_two_bundles_share_a_place_that_was_forgotten() -> None:
    """Who has kept it from before is not let in beside those who have found it anew."""
    counters = Counters()
    one, other = (bundled(counters, METERS[4:], Clock()) for _ in range(2))
    counters.created = 10
    counters.forget(1000.0, 0.0)
    assert counters.forgotten

    let_in = [each.take(0) is not None for each in (one, other, one, other)]
    assert let_in == [True] * 3 + [False]


def test_a_late_charge_meets_its_rate() -> None:
    """What was taken may have drained and been forgotten; what it was counts all the same."""
    clock, counters = Clock(), Counters()
    tokens, _ = METERS[2]
    bundle = bundled(counters, METERS[2:3], clock)
    assert bundle.take(1) is not None
    clock.now += 61
    counters.created = 10
    counters.forget(clock.now, 0.0)
    assert counters.forgotten
    bundle.settle(-40)

    assert counters.read([tokens], clock.now, 0.0)[0].left == pytest.approx(60)


def test_a_place_in_a_bundle_is_not_forgotten() -> None:
    """As long as it is held, it counts for everybody."""
    clock, counters = Clock(), Counters()
    bundle = bundled(counters, METERS[4:], clock)
    assert all(bundle.take(0) is not None for _ in range(3))
    counters.created = 10
    counters.forget(clock.now, 0.0)

    assert bundled(counters, METERS[4:], clock).take(0) is None
    assert not counters.take([(METERS[4][0], 1.0)], OWNER, clock.now, 0.0).granted


def test_others_hold_places_of_the_same_meter() -> None:
    """What is given back by one is not taken from the other."""
    clock, counters = Clock(), Counters()
    places, _ = METERS[4]
    bundle = bundled(counters, METERS[4:], clock)
    assert bundle.take(0) is not None
    assert counters.take([(places, 1.0)], OWNER, clock.now, 0.0).granted
    counters.settle([(places, 1.0, 0.0)], OWNER, clock.now, 0.0)
    assert counters.read([places], clock.now, 0.0)[0].left == 2

    bundle.settle(0)
    assert counters.read([places], clock.now, 0.0)[0].left == 3

    assert counters.take([(places, 3.0)], OWNER, clock.now, 0.0).granted
    assert bundle.take(0) is None


@given(waits=st.lists(st.sampled_from([0.0, 0.3, 2.4, 4.8, 7.2]), min_size=1, max_size=20))
def test_what_is_left_is_told_as_everywhere(waits: list[float]) -> None:
    """In whole numbers, also where a float has come out a hair below one."""
    clock, plain = Clock(), Counters()
    meter, fixed = METERS[0]
    bundle = bundled(Counters(), METERS[:1], clock)
    for wait in waits:
        clock.now += wait
        grant = plain.take([(meter, fixed)], OWNER, clock.now, 0.0)
        told = bundle.take(0)
        assert (told is not None) is grant.granted
        if told is not None:
            left, resets_in, _ = grant.readings[0]
            assert told[0] == filled_in(form("req", meter.limit), left, resets_in)


@given(seconds=st.sampled_from([0.0, 1e-9, 0.0004, 0.25, 0.9985, 0.9995, 1.0, 8.64, 360.0]))
def test_a_time_is_told_as_everywhere(seconds: float) -> None:
    """Those below a second are written beforehand."""
    meter = Meter("tokens", Kind.RATE, 1000, 1000.0)
    told = bundled(Counters(), [(meter, 0.0)], Clock()).take(seconds)

    assert told is not None
    assert dict(of_lines(told[0]))[b"x-ratelimit-reset-tokens"] == duration(seconds)


def bundled(counters: Counters, some: Sequence[tuple[Meter, float]], clock: Clock) -> Bundle:
    """Return a bundle of these meters, of which an answer tells the strictest of each unit."""
    units = {
        "req": [each for each in some if each[1]],
        "tok": [each for each in some if not each[1]],
    }
    return Bundle(
        Beneath(counters, clock),
        [
            [
                Told(meter, fixed, form(unit, meter.limit))
                for meter, fixed in meters
                if meter.kind is Kind.RATE
            ]
            for unit, meters in units.items()
            if any(meter.kind is Kind.RATE for meter, _ in meters)
        ],
        [meter for meter, _ in some if meter.kind is Kind.HELD],
    )


def near(numbers: tuple[float, ...]) -> Any:
    """Return what is the same but for the last digits of a float."""
    return pytest.approx(numbers, rel=1e-6, abs=1e-6)


def wanted(some: list[tuple[Meter, float]], tokens: float) -> list[tuple[Meter, float]]:
    return [(meter, fixed or tokens) for meter, fixed in some]
