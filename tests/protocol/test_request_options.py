"""What callers say of their own requests in headers of ours."""

import pytest

from llmproxy.errors import InvalidRequest
from llmproxy.protocol.request_options import priority_of, timeout_of


def test_nothing_said() -> None:
    """Most callers know nothing of these headers."""
    assert timeout_of({b"host": b"proxy.test"}) is None
    assert priority_of({b"host": b"proxy.test"}) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"1", 1.0), (b"0.25", 0.25), (b" 30 ", 30.0), (b"86400", 86400.0)]
)
def test_a_timeout(value: bytes, seconds: float) -> None:
    """Seconds, as a number of any kind."""
    assert timeout_of({b"x-llmproxy-timeout": value}) == seconds


@pytest.mark.parametrize(
    "value", [b"", b"0", b"-1", b"nan", b"inf", b"1e9", b"soon", b"10s", b"1_0"]
)
def test_no_timeout(value: bytes) -> None:
    """What is none is refused by the name of the header."""
    with pytest.raises(InvalidRequest) as refused:
        timeout_of({b"x-llmproxy-timeout": value})

    assert refused.value.param == "x-llmproxy-timeout"


@pytest.mark.parametrize(("value", "level"), [(b"0", 0), (b"-10", -10), (b"10", 10), (b"07", 7)])
def test_a_priority(value: bytes, level: int) -> None:
    """A whole number; the higher one goes first."""
    assert priority_of({b"x-llmproxy-priority": value}) == level


@pytest.mark.parametrize(
    "value", [b"", b"11", b"-11", b"high", b"1.5", b"+1", b"1_0", b" 1", b"\xd9\xa1", b"999999"]
)
def test_no_priority(value: bytes) -> None:
    """A word or a number that means nothing is refused, not ignored."""
    with pytest.raises(InvalidRequest) as refused:
        priority_of({b"x-llmproxy-priority": value})

    assert refused.value.param == "x-llmproxy-priority"
