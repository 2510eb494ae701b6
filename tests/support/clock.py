"""A loop whose clock a test can move: what takes an hour is tested in a millisecond.

For tests that are marked `clock`. Sockets are real; only `loop.time()` is told what to say, so
it serves for everything that goes by the loop's clock, and for nothing that asks `time` itself.
"""

import asyncio


class ClockLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that can be put forward."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead = 0.0

    def time(self) -> float:
        return super().time() + self._ahead


async def pass_time(seconds: float) -> None:
    """Put the clock forward and let everything happen that is due by then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ClockLoop), "only a test that is marked `clock` can do this"
    loop._ahead += seconds
    for _ in range(20):  # what is due, what that wakes, and what the sockets then say
        await asyncio.sleep(0)
