"""What is left of the time in which a request must be over. A deadline is a monotonic time."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from llmproxy import clock
from llmproxy.errors import UpstreamTimeout

T = TypeVar("T")

FOR_EVER = float("inf")


def left_until(deadline: float) -> float:
    """Return the seconds left; never negative, infinite when there is no deadline."""
    return max(0.0, deadline - clock.now()) if deadline != FOR_EVER else FOR_EVER


def bounded(limit: float, deadline: float) -> float:
    """Return a clock of ours cut to what is left of the request; 0 = no clock."""
    if deadline == FOR_EVER:
        return limit
    left = min(limit or FOR_EVER, left_until(deadline))
    if left <= 0:
        raise UpstreamTimeout("The time set for the request was over before it was asked.")
    return left


async def in_time(awaitable: Awaitable[T], deadline: float) -> T:
    """Return what an awaitable comes to, as long as there is time for the request."""
    try:
        async with asyncio.timeout(left_until(deadline)):
            return await awaitable
    except TimeoutError:
        raise UpstreamTimeout(
            "The answer was not complete within the time set for the request."
        ) from None
