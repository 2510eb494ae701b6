"""Notices clients that have stopped taking what they are sent.

ASGI's `send` waits until the client's socket has room, for ever if need be. A timer for each
chunk would cost as much as sending it, so whoever sends only counts, and a slow tick over all
of them finds the ones that stand still.
"""

import asyncio

TICKS = 4  # looks within the limit: a stall is cut at most a quarter of it too late


class Delivery:
    """The sending of one answer."""

    __slots__ = ("_looked_at", "_still", "count", "sending", "stalled", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[object] | None = None  # that is cancelled when it stands still
        self.count = 0  # sends that were begun
        self.sending = False
        self.stalled = False
        self._looked_at = 0
        self._still = 0

    def look(self) -> None:
        """Cancel the delivery when it has been in the same send for too many looks."""
        if not self.sending or self.count != self._looked_at:
            self._looked_at = self.count
            self._still = 0
            return
        self._still += 1
        if self._still >= TICKS:
            self.stalled = True
            if self.task is not None:
                self.task.cancel()


class Stalls:
    """All deliveries of one app."""

    def __init__(self, within: float) -> None:
        self._within = within
        self._deliveries: set[Delivery] = set()
        self._unwatched = Delivery()  # one for all, for nobody looks at it
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, *, watched: bool) -> Delivery:
        """Watch over the delivery that the running task is about to make.

        A server that is `watched` itself does so already.
        """
        if watched or self._within <= 0:
            return self._unwatched
        delivery = Delivery()
        delivery.task = asyncio.current_task()
        self._deliveries.add(delivery)
        if self._timer is None:
            self._set_timer()
        return delivery

    def end(self, delivery: Delivery) -> None:
        """Stop watching."""
        self._deliveries.discard(delivery)

    def close(self) -> None:
        """Stop watching over anything."""
        self._deliveries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._within / TICKS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for delivery in list(self._deliveries):
            delivery.look()
        if self._deliveries:
            self._set_timer()
