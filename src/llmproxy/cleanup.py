"""What is left to do at an end: finish what must be finished, and let go of what is held."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress


async def finish(work: Awaitable[object], *, within: float) -> None:
    """Run `work` to its end through a cancellation, but no longer than `within` seconds.

    A cancellation that strikes meanwhile is raised afterwards. Running out of time is
    silent: the caller is on its way out already.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait([task], timeout=within)
    except asyncio.CancelledError as exc:
        cancelled = exc
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=within)
    failure = None
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        failure = task.exception()
    if cancelled is not None:
        raise cancelled from failure
    if failure is not None:
        raise failure


def forget_origin(failure: BaseException) -> None:
    """Drop what an error that was kept holds: every frame it came through, and all of theirs."""
    failure.__traceback__ = failure.__cause__ = failure.__context__ = None
