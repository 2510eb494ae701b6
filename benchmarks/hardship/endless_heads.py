"""1,000 connections whose header block never ends.

Each sends up to its limit and waits there, so that all of them hold what one may hold; then
each goes on until it is closed.
"""

import asyncio
from collections.abc import Callable

from benchmarks.hardship.findings import Finding
from benchmarks.hardship.stage import SETTLE, Proxy, proxied

NOBODY = "http://127.0.0.1:9"  # an upstream that is never asked
PATIENCE = 300  # seconds: who holds still must not be given up meanwhile
MANY = 1000
LIMIT = 32 * 1024  # of a head
ALMOST = LIMIT - 256
KIB = 1024
GIVE_UP = 256 * 1024  # bytes after which a head is taken for one that is never refused
FIRST = b"GET / HTTP/1.1\r\nhost: x\r\n"

# What comes behind the first line, in writes of these sizes; every way of not ending is another.
KINDS: dict[str, Callable[[], bytes]] = {
    "fields of 7 KiB": lambda: b"x: " + b"y" * 7_000 + b"\r\n",
    "fields of 350 bytes": lambda: b"x: " + b"y" * 345 + b"\r\n",
    "one field in small pieces": lambda: b"y" * 512,
}


async def findings(minutes: float) -> list[Finding]:
    """One connection by itself, then many of each kind; each time before a fresh proxy."""
    async with proxied(NOBODY, timeout_head=PATIENCE) as proxy:
        alone, _ = await _hold(proxy, 1, "fields of 7 KiB")
    found = [
        Finding(what="one alone: memory more than before", measured=alone, unit="KiB", limit=KIB)
    ]
    troubles = 0
    for kind in KINDS:
        # What one kind has left behind would be used again by the next.
        async with proxied(NOBODY, timeout_head=PATIENCE) as proxy:
            grown, sent = await _hold(proxy, MANY, kind)
            troubles += proxy.troubles()
        found += [
            Finding(
                what=f"{kind}: memory of a connection, mean of {MANY:,}",
                measured=grown / MANY,
                unit="KiB",
                limit=2 * LIMIT / KIB,
            ),
            Finding(
                what=f"{kind}: bytes after which it was closed, at most",
                measured=max(sent) / KIB,
                unit="KiB",
                limit=2 * LIMIT / KIB,
            ),
        ]
    return [*found, Finding(what="crashes in the log", measured=troubles, unit="", limit=0)]


async def _hold(proxy: Proxy, count: int, kind: str) -> tuple[float, list[int]]:
    """Return the KiB that the process grew by, and what each could send until it was closed."""
    await asyncio.sleep(SETTLE)
    before = proxy.memory()
    heads = [await EndlessHead.begin(proxy.port, KINDS[kind]) for _ in range(count)]
    while any([await head.go_on(ALMOST) for head in heads]):  # in turns, as a crowd does
        pass
    await asyncio.sleep(SETTLE)
    grown = (proxy.memory() - before) / KIB
    await asyncio.gather(*(head.to_the_end() for head in heads))
    return grown, [head.sent for head in heads]


class EndlessHead:
    """One connection that sends a head and does not finish it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        piece: Callable[[], bytes],
    ) -> None:
        self.sent = 0
        self._reader = reader
        self._writer = writer
        self._piece = piece

    @classmethod
    async def begin(cls, port: int, piece: Callable[[], bytes]) -> "EndlessHead":
        head = cls(*await asyncio.open_connection("127.0.0.1", port), piece)
        await head._send(FIRST if piece()[:2] == b"x:" else FIRST + b"x: ")
        return head

    async def go_on(self, limit: int) -> bool:
        """Send one more piece if it fits below the limit."""
        piece = self._piece()
        if self.sent + len(piece) > limit:
            return False
        await self._send(piece)
        return True

    async def to_the_end(self) -> None:
        """Send until we are told to stop, or for much too long."""
        answer = asyncio.ensure_future(self._reader.read(64))
        while not answer.done() and self.sent < GIVE_UP:
            try:
                await self._send(self._piece()[:1024])
            except OSError:
                break
            await asyncio.wait([answer], timeout=0.02)
        answer.cancel()
        self._writer.transport.abort()

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self.sent += len(data)
