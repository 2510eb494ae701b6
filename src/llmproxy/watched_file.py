"""A file that somebody else changes while we run.

Rule 1: what was read well counts until something else was read well: what is broken is read again
        and again, and what cannot be read has not changed anything.
Rule 2: what was written a moment ago is looked at the next time: somebody may still be writing, and
        half a file is another file. One without a byte has most likely just been opened.
Rule 3: nothing here touches the disk on the event loop.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from llmproxy import clock

SETTLED = 0.75  # seconds for which nobody has written
FILLED = 3.0  # seconds in which whoever has opened it writes something

T = TypeVar("T")

State = tuple[int, int, int]  # of a file: when it was changed, its size, its inode


class WatchedFile(Generic[T]):
    """Tells what a file says whenever that has changed. `understand` raises `ValueError`."""

    def __init__(self, path: str, understand: Callable[[bytes], T], *, at_most: int) -> None:
        self._path = path
        self._understand = understand
        self._at_most = at_most
        self._state: State | None = None

    async def look(self) -> T | None:
        """Return what the file says; None when it is as it was.

        Raises `ValueError` when that is not to be had or not to be understood.
        """
        read = await asyncio.to_thread(self._read)
        if read is None:
            return None
        self._state, said = read
        return said

    def _read(self) -> tuple[State, T] | None:
        try:
            # Before the content: what is written while we read is a change for the next look.
            found = Path(self._path).stat()
        except OSError as exc:
            raise ValueError(f"{self._path!r} cannot be read: {exc.strerror}") from None
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if state == self._state:
            return None
        quiet = FILLED if found.st_size == 0 else SETTLED
        if self._state is not None and 0 <= clock.wall() - found.st_mtime < quiet:
            return None
        return state, self._understand(content_of(self._path, self._at_most))


def content_of(path: str, at_most: int) -> bytes:
    """Return what is in a file; raise `ValueError` with the reason why that cannot be."""
    try:
        with open(path, "rb") as file:
            content = file.read(at_most + 1)
    except OSError as exc:
        raise ValueError(f"{path!r} cannot be read: {exc.strerror}") from None
    if len(content) > at_most:
        raise ValueError(f"{path!r} is larger than {at_most} bytes")
    return content
