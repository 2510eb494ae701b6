"""What is left of the time in which a request must be over. A deadline is a monotonic time."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from llmproxy import clock
from llmproxy.errors import UpstreamTimeout

T = TypeVar("T")

FOR_EVER = float("inf")
NOT_COMPLETE = "The answer was not complete within the time set for the request."


def left_until(deadline: float) -> float:
    """Return the seconds left; never negative, infinite when there is no deadline."""
    return max(0.0, deadline - clock.now()) if deadline != FOR_EVER else FOR_EVER


def is_past(deadline: float) -> bool:
    """Tell whether no time is left."""
    return deadline != FOR_EVER and clock.now() >= deadline


async def in_time(awaitable: Awaitable[T], deadline: float) -> T:
    """Return what an awaitable comes to, as long as there is time for the request."""
    try:
        async with asyncio.timeout(left_until(deadline)):
            return await awaitable
    except TimeoutError:
        raise out_of_time(NOT_COMPLETE) from None


def out_of_time(detail: str) -> UpstreamTimeout:
    """Return the error for a request whose own time is over."""
    failure = UpstreamTimeout(detail)
    failure.of_request = True
    return failure
