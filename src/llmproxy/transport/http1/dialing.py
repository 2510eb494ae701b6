"""A connection that is being made, and may be given up before those who wait for it know.

An upstream that takes no connections has hundreds of callers waiting. When they leave, their
attempts end in the next turn of the event loop, and not each when its request is ended.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from llmproxy.transport.http1.connection import Connection


class Dialing:
    """One attempt, in a task of its own."""

    __slots__ = ("_attempt", "_given_up", "_made")

    def __init__(
        self, attempt: Coroutine[Any, Any, Connection], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._given_up = False
        self._made: asyncio.Future[Connection] | None = loop.create_future()
        self._attempt: asyncio.Task[Connection] | None = loop.create_task(attempt)
        self._attempt.add_done_callback(self._tell)

    async def made(self) -> Connection:
        """Return the connection, or raise why there is none; wait on once it is given up."""
        made = self._made
        assert made is not None
        try:
            return await made
        except BaseException:
            if made.done() and not made.cancelled() and made.exception() is None:
                made.result().abandon()  # in the same moment in which we stopped waiting
            self.close()
            raise
        finally:
            # What failed holds this frame, and must not be held by it.
            del made
            self._made = self._attempt = None

    def close(self) -> None:
        """Give up. Whoever waits is told nothing by that, and is to be cancelled."""
        self._given_up = True
        if self._attempt is not None:
            self._attempt.cancel()

    def _tell(self, attempt: "asyncio.Task[Connection]") -> None:
        made = None if self._given_up else self._made
        if made is None or made.done():  # nobody waits any more
            if not attempt.cancelled() and attempt.exception() is None:
                attempt.result().abandon()
        elif attempt.cancelled():
            made.cancel()
        elif (failure := attempt.exception()) is not None:
            made.set_exception(failure)
        else:
            made.set_result(attempt.result())
