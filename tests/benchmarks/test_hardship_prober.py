"""The client whose patience is measured, against a server of its own."""

import asyncio

from benchmarks.hardship.rejections import KINDS
from benchmarks.hardship.stage import listening, probed

GET = KINDS["404 unknown path"][1]


async def test_it_asks_at_its_rate_and_misses_nobody() -> None:
    """Over connections that it keeps, too."""
    async with listening("benchmarks.hardship.bare_server") as port:
        fresh = await probed(port, GET, rate=100, seconds=0.3)
        kept = await probed(port, GET, rate=100, seconds=0.3, keep=True)

    for seen in (fresh, kept):
        assert seen.statuses == {"404": 30}
        assert (len(seen.waits), len(seen.late), seen.lost) == (30, 30, 0)
        assert all(wait > 0 for wait in seen.waits)


async def test_who_is_never_answered_is_lost() -> None:
    """A server that closes without a word must not look like a fast one."""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(leave, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        seen = await probed(port, GET, rate=20, seconds=0.1)

    assert seen.statuses == {}
    assert (seen.waits, seen.lost) == ([], 2)
