"""When an engine wants to be asked again: in seconds, whichever way it says it."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.routing.retry import DAY, in_seconds, seconds_of
from llmproxy.types import Header

NOON = 784_123_200.0
AT_NOON = b"Sun, 06 Nov 1994 12:00:00 GMT"


def waits(retry_after: bytes, *others: Header) -> bytes:
    """Return what becomes of a Retry-After that comes 30 s before noon."""
    told = in_seconds([*others, (b"retry-after", retry_after)], lambda: NOON - 30)
    assert told[:-1] == list(others)
    return told[-1][1]


def test_a_date_is_seconds_from_the_engines_own_date() -> None:
    """Its clock may be wrong, and is wrong in both."""
    assert waits(AT_NOON, (b"date", b"Sun, 06 Nov 1994 11:59:55 GMT")) == b"5"


@pytest.mark.parametrize("date", [[], [(b"date", b"yesterday")]], ids=["none", "no_date"])
def test_without_one_it_is_seconds_from_now(date: list[Header]) -> None:
    """By our own clock."""
    assert waits(AT_NOON, *date) == b"30"


def test_a_date_that_is_over_is_now_and_one_far_away_is_a_day() -> None:
    """Nobody waits for less than nothing, nor for ever."""
    assert waits(b"Sun, 06 Nov 1994 11:00:00 GMT") == b"0"
    assert waits(b"Fri, 31 Dec 9999 23:59:59 GMT") == b"86400"


@pytest.mark.parametrize("said", [b"5", b"1.5", b"-5", b"soon", b"Sun, 06 Nov 1994 12:00:00", b""])
def test_what_is_no_date_is_left_as_it_is(said: bytes) -> None:
    """Seconds are what everybody says."""
    assert waits(said) == said


@given(st.floats(-1e9, 1e9))
def test_every_date_becomes_seconds_that_can_be_read(seconds: float) -> None:
    """Never less than none, never more than a day."""
    said = waits(formatdate(NOON + seconds, usegmt=True).encode())

    assert seconds_of(said) is not None
    assert 0 <= int(said) <= DAY


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_stands_there_breaks_nothing(said: bytes, date: bytes) -> None:
    """It comes from a server that may say anything."""
    waits(said + b"GMT", (b"date", date + b"GMT"))


@given(
    st.from_regex(rb"\A[A-Z][a-z]{2}, ?\d{1,9} (Jan|Feb|Xxx) \d{1,30} [0-9:.+-]{0,12} GMT\Z"),
)
def test_no_date_that_cannot_be_breaks_anything(said: bytes) -> None:
    """Neither the 99th of February nor the year 0."""
    waits(said, (b"date", said))
