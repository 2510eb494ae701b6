"""Waiting for a server that takes no more of our requests than it is configured to.

Whoever waits for the same model is served in the order in which they came.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from llmproxy import clock
from llmproxy.errors import Overloaded

LOOK_EVERY = 1.0  # seconds after which the first in a row looks by itself


class Places:
    """Those who wait, by the model they wait for."""

    def __init__(self, *, most: int, within: float) -> None:
        """`most` may wait, each `within` seconds; 0 = for ever."""
        self._most = most
        self._within = within
        self._waiting: dict[str | None, deque[asyncio.Future[None]]] = {}
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
        called = asyncio.get_running_loop().create_future()
        row = self._waiting.setdefault(model, deque())
        (row.appendleft if first else row.append)(called)
        self.waiting += 1
        try:
            while not called.done():
                left = until - clock.now()
                if left <= 0:
                    raise _full()
                await asyncio.wait((called,), timeout=min(left, LOOK_EVERY))
                if meanwhile is not None and not called.done():
                    await meanwhile()
                if row and row[0] is called:
                    return  # a server may have come back without a request that ends
        except BaseException:
            if called.done():
                self._wake(model)  # it was our turn, and now it is the next one's
            raise
        finally:
            self.waiting -= 1
            if called in row:
                row.remove(called)
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
        while row:
            called = row.popleft()
            if not called.done():
                called.set_result(None)
                return


def _full() -> Overloaded:
    return Overloaded(
        "Every model server that could answer has as much to do as it may be given.",
        retry_after=1,
    )
