"""Heavy work on the event loop: one step of it in each turn of the loop.

A step of some milliseconds is not noticed. Those of ten requests in the same turn are, by everybody
who has to wait until all of them are over.

Rule: whoever is about to do such a step waits for its turn first. Turns are given in the order in
which they were asked for, and to nobody else in the same turn of the loop.
"""

import asyncio
import threading
from collections import deque

STEP = 1024 * 1024  # bytes that are copied in one step

_Waiting = deque["asyncio.Future[None]"]


class _Turns(threading.local):
    """Those of one event loop; a host may run another one after it, or in another thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: _Waiting = deque()

    def ask(self) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._waiting = loop, deque()
        waiting = self._waiting
        if not waiting:
            loop.call_soon(_give, loop, waiting)
        mine = loop.create_future()
        waiting.append(mine)
        return mine


def _give(loop: asyncio.AbstractEventLoop, waiting: _Waiting) -> None:
    """Wake the next; it does its step in the turn of the loop that comes."""
    while waiting:
        turn = waiting.popleft()
        if not turn.done():  # whoever was cancelled needs none
            turn.set_result(None)
            break
    if waiting:
        loop.call_soon(_give, loop, waiting)


_turns = _Turns()


def my_turn() -> "asyncio.Future[None]":
    """Return what is done when it is the caller's turn."""
    return _turns.ask()
