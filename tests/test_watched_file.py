"""A file that others write: half of it is not taken for all of it."""

import os
import time
from pathlib import Path

import pytest

from llmproxy import clock
from llmproxy.watched_file import FILLED, SETTLED, WatchedFile


class Watch:
    """A file, somebody who reads it, and a calendar."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.now = time.time()
        monkeypatch.setattr(clock, "wall", lambda: self.now)
        self._file = WatchedFile(str(path), bytes.decode, at_most=100)

    def write(self, text: str, at: float | None = None) -> None:
        self.path.write_text(text)
        at = self.now if at is None else at
        os.utime(self.path, (at, at))

    async def look(self) -> str | None:
        return await self._file.look()


@pytest.fixture
async def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """One that has been read."""
    watch = Watch(tmp_path / "keys", monkeypatch)
    watch.write("first")
    assert await watch.look() == "first"  # at once: there is nothing to go on with
    return watch


async def test_what_is_being_written_is_looked_at_later(watch: Watch) -> None:
    """`generate > keys` is half a file for as long as it runs, and was one that was taken over."""
    for half in ("s", "sec", "second"):
        watch.now += SETTLED / 2
        watch.write(half)
        assert await watch.look() is None

    watch.now += SETTLED + 0.01
    assert await watch.look() == "second"
    assert await watch.look() is None


async def test_a_file_without_a_byte_has_most_likely_just_been_opened(watch: Watch) -> None:
    """But whoever takes everything out of it means it."""
    watch.write("")
    watch.now += FILLED - 0.01
    assert await watch.look() is None

    watch.now += 0.02
    assert await watch.look() == ""


async def test_a_clock_that_is_ahead_holds_nothing_up(watch: Watch) -> None:
    """That of a file server, say."""
    watch.write("second", at=watch.now + 3600)

    assert await watch.look() == "second"
