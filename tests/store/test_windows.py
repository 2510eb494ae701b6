"""Where hours, days and months begin and end."""

from datetime import UTC, datetime
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.records import Window
from llmproxy.store.counters import Counters
from llmproxy.store.interface import Kind, Meter
from llmproxy.store.windows import Calendar, window_at

HOUR_AND_DAY: tuple[Window, ...] = ("hour", "day")
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC).timestamp()
)


@given(MOMENTS)
def test_windows_are_those_of_the_calendar(moment: float) -> None:
    """In UTC, whatever the length of the month."""
    then = datetime.fromtimestamp(moment, UTC)
    hour = then.replace(minute=0, second=0, microsecond=0)
    month = hour.replace(day=1, hour=0)
    next_month = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)

    assert window_at("hour", moment) == (hour.timestamp(), hour.timestamp() + 3600)
    assert window_at("day", moment)[0] == hour.replace(hour=0).timestamp()
    assert window_at("month", moment) == (month.timestamp(), next_month.timestamp())
    assert window_at("total", moment) == (0, inf)


@given(st.lists(MOMENTS, max_size=20))
def test_what_was_looked_up_is_not_believed_for_too_long(moments: list[float]) -> None:
    """A calendar says what a look at each moment would, in any order."""
    calendar = Calendar()

    for moment in moments:
        assert calendar.at("day", moment) == window_at("day", moment)


def test_a_new_window_begins_at_zero_with_what_is_held() -> None:
    """What is spent is forgotten; what is held goes over."""
    counters, day = Counters(), Meter("budget", Kind.SPENT, 10, window="day")
    counters.take([(day, 9)], "me", 0, 1000)
    counters.settle([(day, 6, 5)], "me", 0, 1000)

    (reading,) = counters.read([day], 0, 1000 + 86400)

    assert reading.left == 7


def test_a_calendar_that_is_set_back_gives_nothing_back() -> None:
    """Yesterday's budget does not come again."""
    counters, day = Counters(), Meter("budget", Kind.SPENT, 10, window="day")
    counters.take([(day, 0)], "me", 0, 86400)
    counters.settle([(day, 0, 10)], "me", 0, 86400)

    assert not counters.take([(day, 1)], "me", 0, 86300).granted
    assert counters.take([(day, 1)], "me", 0, 2 * 86400).granted


def test_a_budget_may_get_another_window() -> None:
    """From an hour to a day and back, it never waits for a window that is long over."""
    counters = Counters()
    hour, day = (Meter("budget", Kind.SPENT, 10, window=each) for each in HOUR_AND_DAY)
    counters.settle([(hour, 0, 10)], "me", 0, 90_000)

    assert not counters.take([(day, 1)], "me", 0, 91_000).granted
    assert counters.take([(day, 1)], "me", 0, 2 * 86400).granted
    assert counters.take([(hour, 1)], "me", 0, 2 * 86400 + 3600).granted
