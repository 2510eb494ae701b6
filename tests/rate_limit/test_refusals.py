"""What is said to a caller who has reached a limit."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.rate_limit.refusals import duration

UNITS = {"s": 1, "min": 60, "h": 3600, "days": 86_400}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.01 s"),
        (0.0004, "0.01 s"),
        (0.35, "0.35 s"),
        (0.351, "0.36 s"),
        (1.0, "1 s"),
        (1.23, "1.3 s"),
        (11.2, "12 s"),
        (60.0, "60 s"),
        (99.5, "100 s"),
        (101.0, "1.7 min"),
        (600.0, "10 min"),
        (3601.0, "61 min"),
        (86_399.97, "24 h"),
        (86_400.0, "24 h"),
        (200_000.0, "56 h"),
        (7 * 86_400.0, "7 days"),
        (30 * 86_400.0, "30 days"),
    ],
)
def test_a_duration_is_for_people(seconds: float, said: str) -> None:
    """In the unit that one would take, rounded up."""
    assert duration(seconds) == said


@given(st.floats(0.0, 1e9))
def test_a_duration_is_never_too_short_and_hardly_too_long(seconds: float) -> None:
    """Who comes after it is not refused again, and has not waited for much longer."""
    number, unit = duration(seconds).split()
    told = float(number) * UNITS[unit]

    assert "e" not in number or seconds > 1e8
    assert seconds * (1 - 1e-9) <= told <= max(seconds * 1.1 + 1e-6, seconds + 0.011)
    assert told < inf
