"""The form in which OpenAI tells of limits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.headers import of_lines
from llmproxy.rate_limit.openai_headers import (
    LONGEST,
    duration,
    filled_in,
    form,
    retry_headers,
)
from llmproxy.types import Header

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"), (-3, b"0s"), (0.12, b"120ms"), (0.0004, b"1ms"), (1, b"1s"), (8.64, b"8.64s"),
        (59.9999, b"1m0s"), (60, b"1m0s"), (360, b"6m0s"), (432.5, b"7m12.5s"), (3600, b"1h0m0s"),
        (86_400, b"24h0m0s"),
    ],
)  # fmt: skip
def test_durations_look_like_those_of_go(seconds: float, text: bytes) -> None:
    """`1s`, `6m0s`, `120ms`: no unit larger than hours, nothing below a millisecond."""
    assert duration(seconds) == text


@given(st.floats(0, 1e8))
def test_a_duration_is_never_too_short(seconds: float) -> None:
    """Whoever reads it back and waits has waited for long enough, and hardly for longer."""
    read = re.findall(r"([0-9.]+)(h|ms|m|s)", duration(seconds).decode())
    waited = sum(float(number) * UNITS[unit] for number, unit in read)

    assert seconds - 1e-6 <= waited <= seconds + 0.001 + 1e-6


@given(st.floats(0, LONGEST - 1))
def test_retrying_after_as_long_is_late_enough(seconds: float) -> None:
    """Whole seconds, rounded up, one at least; milliseconds beside them."""
    headers = dict(retry_headers(seconds))
    whole, fine = int(headers[b"retry-after"]), int(headers[b"retry-after-ms"])

    assert max(1, seconds - 1e-6) <= whole < seconds + 1.001
    assert seconds * 1000 - 1e-3 <= fine <= seconds * 1000 + 1.001


def test_there_is_always_a_time_to_ask_again() -> None:
    """A budget without a window gets the longest there is."""
    assert dict(retry_headers(float("inf")))[b"retry-after"] == b"%d" % LONGEST


@given(st.floats(-1e9, 1e9))
def test_what_remains_is_whole_and_not_negative(left: float) -> None:
    """A debt is nothing left; a hair below a whole number is that number."""
    remaining = told("tok", 1e9, left, 1)[1][1]

    assert max(0.0, left - 1) <= int(remaining) <= max(0.0, left + 1e-6)


def test_requests_and_tokens_have_their_own_names() -> None:
    """As OpenAI has them, three of each."""
    assert told("req", 60.0, 58.9999999, 1) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
    ]
    assert told("tok", 1e6, 5, 360) == [
        (b"x-ratelimit-limit-tokens", b"1000000"),
        (b"x-ratelimit-remaining-tokens", b"5"),
        (b"x-ratelimit-reset-tokens", b"6m0s"),
    ]


def told(unit: str, limit: float, left: float, resets_in: float) -> list[Header]:
    return of_lines(filled_in(form(unit, limit), left, resets_in))
