"""Servers that are listed in a file."""

import os
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from llmproxy.records import Upstream
from llmproxy.routing.discovery.server_file import FileSource
from llmproxy.routing.discovery.source import LookFailed
from llmproxy.settings.upstreams import read_server_file

READ = partial(read_server_file, environ={})
LONG_AGO = count(1_000_000_000)


def watching(path: Path) -> FileSource:
    return FileSource(Upstream("pool", "", "", 0, path=str(path), found_by="file"), read=READ)


def written(path: Path, content: bytes) -> None:
    """Write a file as somebody did who has been gone for long."""
    path.write_bytes(content)
    at = next(LONG_AGO)
    os.utime(path, (at, at))


async def hosts(source: FileSource) -> list[str]:
    return [each.host for each in await source.look()]


async def test_a_change_is_seen(tmp_path: Path) -> None:
    """Whether the file is written anew or another is put in its place."""
    path = tmp_path / "servers"
    path.write_text("http://a\nhttp://b")
    source = watching(path)
    assert await hosts(source) == ["a", "b"]

    written(path, b"http://c")
    assert await hosts(source) == ["c"]
    written(tmp_path / "other", b"http://d")
    (tmp_path / "other").rename(path)
    assert await hosts(source) == ["d"]


async def test_an_unchanged_file_lists_the_same_servers(tmp_path: Path) -> None:
    """The same objects: nothing has to be compared field by field."""
    path = tmp_path / "servers"
    path.write_text("http://a")
    source = watching(path)

    assert await source.look() is await source.look()


@pytest.mark.parametrize("broken", [None, b"", b"gpu1:8000", b"\xff", b"[", b" " * 1_048_577])
async def test_a_broken_file_lists_nothing_new(broken: bytes | None, tmp_path: Path) -> None:
    """It says what is wrong each time, until it is mended."""
    path = tmp_path / "servers"
    path.write_text("http://a")
    source = watching(path)
    await source.look()
    if broken is None:
        path.unlink()
    else:
        written(path, broken)

    for _ in range(2):
        with pytest.raises(LookFailed):
            await source.look()
    written(path, b"http://b:1")
    assert await hosts(source) == ["b"]
