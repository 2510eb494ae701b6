"""A time limit for somebody else's work, by a clock that does not run while we are stuck.

It is counted in turns. A turn that our event loop was late for counts as one all the same, and
what has arrived meanwhile is read before the next: a server is not taken for dead because we
had no time to listen.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TURNS = 10


@asynccontextmanager
async def patient(seconds: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` when what is inside takes longer than this."""
    loop = asyncio.get_running_loop()
    left = TURNS
    due: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as limit:

        def turn() -> None:
            nonlocal left, due
            if left:
                left -= 1
                due = loop.call_later(seconds / TURNS, turn)
            else:
                limit.reschedule(loop.time())

        turn()
        try:
            yield
        finally:
            if due is not None:
                due.cancel()
