"""When a server is left alone, and who finds out whether it is back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pybreaker import STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN

from llmproxy.routing.breaker import FIRST_REST, LONGEST_REST, REFUSED_IN_A_ROW, WINDOW, Breaker


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def now() -> Clock:
    return Clock()


def opened(now: Clock) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(now)
    for _ in range(20):
        breaker.failed(probe=False)
    assert breaker.state == STATE_OPEN
    return breaker


@pytest.mark.parametrize(
    ("good", "bad", "state"),
    [
        pytest.param(0, 19, STATE_CLOSED, id="too_few_calls_to_judge"),
        pytest.param(0, 20, STATE_OPEN, id="all_of_20"),
        pytest.param(10, 10, STATE_OPEN, id="half_of_20"),
        pytest.param(11, 10, STATE_CLOSED, id="less_than_half"),
    ],
)
def test_it_opens_at_half_of_twenty(now: Clock, good: int, bad: int, state: str) -> None:
    """A share among few calls says nothing."""
    breaker = Breaker(now)

    for _ in range(good):
        breaker.succeeded(probe=False)
    for _ in range(bad):
        breaker.failed(probe=False)

    assert breaker.state == state


def test_old_failures_are_forgotten(now: Clock) -> None:
    """Only the window is judged."""
    breaker = Breaker(now)
    for _ in range(19):
        breaker.failed(probe=False)
    now.at += WINDOW + 1

    breaker.failed(probe=False)

    assert breaker.state == STATE_CLOSED


def test_refused_connections_in_a_row_open_it_at_once(now: Clock) -> None:
    """A server that is down need not be asked twenty times."""
    breaker = Breaker(now)

    for _ in range(REFUSED_IN_A_ROW):
        breaker.failed(probe=False, refused=True)

    assert breaker.state == STATE_OPEN
    assert not breaker.lets_through()


def test_one_answer_between_refusals_starts_the_row_anew(now: Clock) -> None:
    """A row is a row."""
    breaker = Breaker(now)

    for _ in range(REFUSED_IN_A_ROW * 2 - 2):
        if breaker.lets_through():
            breaker.failed(probe=False, refused=True)
        if _ == REFUSED_IN_A_ROW - 2:
            breaker.succeeded(probe=False)

    assert breaker.state == STATE_CLOSED


def test_half_open_is_one_call(now: Clock) -> None:
    """However many are waiting, one finds out."""
    breaker = opened(now)
    now.at += FIRST_REST

    assert breaker.lets_through()
    assert breaker.begin()

    assert breaker.state == STATE_HALF_OPEN
    assert not any(breaker.lets_through() for _ in range(50))


def test_a_good_probe_closes_it(now: Clock) -> None:
    """The server is back, and its past is forgotten."""
    breaker = opened(now)
    now.at += FIRST_REST
    breaker.begin()

    breaker.succeeded(probe=True)

    assert breaker.state == STATE_CLOSED
    breaker.failed(probe=False)
    assert breaker.state == STATE_CLOSED


def test_each_bad_probe_doubles_the_rest(now: Clock) -> None:
    """A server that stays down is asked less and less, but never not at all."""
    breaker = opened(now)
    rests = []
    for _ in range(6):
        rests.append(breaker.opens_in())
        now.at += breaker.opens_in()
        breaker.begin()
        breaker.failed(probe=True)

    assert rests == [5.0, 10.0, 20.0, 40.0, LONGEST_REST, LONGEST_REST]


def test_a_probe_whose_client_left_says_nothing(now: Clock) -> None:
    """The next one may find out, and it may do so at once."""
    breaker = opened(now)
    now.at += FIRST_REST
    breaker.begin()

    breaker.weighs_nothing(probe=True)

    assert breaker.lets_through()


def test_late_answers_do_not_close_what_has_opened(now: Clock) -> None:
    """A call from before it opened is no probe."""
    breaker = opened(now)

    breaker.succeeded(probe=False)

    assert breaker.state == STATE_OPEN


def test_one_that_is_closed_anew_counts_from_there_on(now: Clock) -> None:
    """Within the same second too: what was counted before is gone."""
    breaker = Breaker(now)
    for _ in range(19):
        breaker.failed(probe=False)

    breaker.close()
    breaker.succeeded(probe=False)
    breaker.failed(probe=False)

    assert breaker.state == STATE_CLOSED


def test_changes_are_told(now: Clock) -> None:
    """Whoever listens hears each change once."""
    heard: list[tuple[str, str]] = []
    breaker = Breaker(now, lambda before, after: heard.append((before, after)))
    for _ in range(25):
        breaker.failed(probe=False)
    now.at += FIRST_REST
    breaker.begin()
    breaker.succeeded(probe=True)

    assert heard == [
        (STATE_CLOSED, STATE_OPEN),
        (STATE_OPEN, STATE_HALF_OPEN),
        (STATE_HALF_OPEN, STATE_CLOSED),
    ]


@given(st.lists(st.sampled_from(["good", "bad", "nothing", "wait"]), max_size=200))
def test_whatever_happens_it_lets_somebody_through_in_the_end(events: list[str]) -> None:
    """No order of events shuts a server out for ever, and half open never means two."""
    now = Clock()
    breaker = Breaker(now)
    for event in events:
        if event == "wait":
            now.at += 3.0
            continue
        if not breaker.lets_through():
            continue
        probe = breaker.begin()
        assert not probe or not breaker.lets_through()
        if event == "good":
            breaker.succeeded(probe=probe)
        elif event == "bad":
            breaker.failed(probe=probe)
        else:
            breaker.weighs_nothing(probe=probe)

    now.at += LONGEST_REST

    assert breaker.lets_through()
