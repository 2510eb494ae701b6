"""Waiting for a server that takes no more of our requests than it is configured to.

Whoever waits for the same model is served in the order in which they came.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from llmproxy import clock
from llmproxy.errors import Overloaded

LOOK_EVERY = 1.0  # seconds after which the first in a row looks by itself


class _Waiter:
    """One who waits. One future and one timer: `asyncio.wait` has twice as much to take down."""

    __slots__ = ("bell", "called")

    def __init__(self) -> None:
        self.called = False
        self.bell: asyncio.Future[None] | None = None

    def call(self) -> None:
        self.called = True
        self._ring()

    async def rest(self, seconds: float) -> None:
        """Return when called, or after so long."""
        loop = asyncio.get_running_loop()
        self.bell = loop.create_future()
        timer = loop.call_later(seconds, self._ring)
        try:
            await self.bell
        finally:
            timer.cancel()

    def _ring(self) -> None:
        if self.bell is not None and not self.bell.done():
            self.bell.set_result(None)


class Places:
    """Those who wait, by the model they wait for."""

    def __init__(self, *, most: int, within: float) -> None:
        """`most` may wait, each `within` seconds; 0 = for ever."""
        self._most = most
        self._within = within
        self._waiting: dict[str | None, deque[_Waiter]] = {}
        self.waiting = 0
        """How many wait, for whatever model."""

    def are_waited_for(self, model: str | None) -> bool:
        """Tell whether somebody waits for this model, before whom nobody else may be served."""
        return model in self._waiting

    def until(self, deadline: float) -> float:
        """Return when somebody who comes now has waited for long enough."""
        return min(deadline, clock.now() + self._within) if self._within else deadline

    async def wait(
        self,
        model: str | None,
        *,
        until: float,
        first: bool = False,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Return when a server of this model may have a place.

        `first`: it was this one's turn already, and somebody was faster. Who has waited must
        `pass_on` the turn when it goes on, with a place or without. `meanwhile` is done about
        every LOOK_EVERY.
        """
        if self.waiting >= self._most:
            raise _full()
        waiter = _Waiter()
        row = self._waiting.setdefault(model, deque())
        (row.appendleft if first else row.append)(waiter)
        self.waiting += 1
        try:
            while not waiter.called:
                left = until - clock.now()
                if left <= 0:
                    raise _full()
                await waiter.rest(min(left, LOOK_EVERY))
                if meanwhile is not None and not waiter.called:
                    await meanwhile()
                if row and row[0] is waiter:
                    return  # a server may have come back without a request that ends
        except BaseException:
            if waiter.called:
                self._wake(model)  # it was our turn, and now it is the next one's
            raise
        finally:
            self.waiting -= 1
            if waiter in row:
                row.remove(waiter)
            if not row and self._waiting.get(model) is row:
                del self._waiting[model]

    def freed(self) -> None:
        """Tell that a server with a limit has finished a request."""
        for model in list(self._waiting):
            self._wake(model)

    def pass_on(self, model: str | None) -> None:
        """Have the next one look: there may be more places, or none to be had at all."""
        self._wake(model)

    def _wake(self, model: str | None) -> None:
        row = self._waiting.get(model)
        if row:
            row.popleft().call()


def _full() -> Overloaded:
    return Overloaded(
        "Every model server that could answer has as much to do as it may be given.",
        retry_after=1,
    )
