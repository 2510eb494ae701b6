"""Readers that stop after the head of a stream that never ends.

What the process holds of one stream is what the engine got rid of, less what the client has read
and what lies in the four buffers of the kernel (/proc/net/tcp).
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from benchmarks.hardship.findings import Finding, growth
from benchmarks.hardship.flood import ASK, Flood, flooding
from benchmarks.hardship.kernel import in_kernel
from benchmarks.hardship.stage import SETTLE, Collapse, Proxy, proxied

ALONE = 5
MANY = 500
ONE_HOLDS = 512 * 1024
ALL_HOLD = 256 * 1024 * 1024
NOISE = 1024 * 1024  # bytes, over the whole time: less is no growth
EVERY = 5.0  # seconds between two samples
KIB = 1024
MIB = 1024 * 1024


class Held(NamedTuple):
    """Where the bytes of one stream are; in bytes."""

    grown: int  # memory of the process
    held: int  # neither with the client nor with the kernel, so with us
    taken: int
    kernel: int


async def findings(minutes: float) -> list[Finding]:
    """One reader, whose bytes are followed; then many, for long."""
    async with flooding() as flood, proxied(flood.port, timeout_write=0) as proxy:
        return [*await _one(flood, proxy), *await _many(flood, proxy, minutes * 60)]


async def _one(flood: Flood, proxy: Proxy) -> list[Finding]:
    await _stuck_alone(flood, proxy)  # what the first one allocates for good is not counted
    seen = [await _stuck_alone(flood, proxy) for _ in range(ALONE)]
    alone = f"a reader alone, the most of {ALONE}"
    return [
        Finding(
            what=f"{alone}: bytes of the engine that the process holds",
            measured=max(each.held for each in seen) / KIB,
            unit="KiB",
            limit=ONE_HOLDS / KIB,
        ),
        # Without a limit: the allocator keeps room that the next reader uses, too.
        Finding(
            what=f"{alone}: resident memory of the process more than before",
            measured=max(each.grown for each in seen) / KIB,
            unit="KiB",
        ),
        Finding(
            what=f"{alone}: bytes that the engine could send",
            measured=max(each.taken for each in seen) / KIB,
            unit="KiB",
        ),
        Finding(
            what=f"{alone}: of them in the kernel, in all four buffers",
            measured=max(each.kernel for each in seen) / KIB,
            unit="KiB",
        ),
    ]


async def _stuck_alone(flood: Flood, proxy: Proxy) -> Held:
    await asyncio.sleep(SETTLE)
    before = proxy.memory()
    async with stuck(proxy.port, 1) as read_by_client:
        await _at_rest(flood)
        taken = sum(stream.taken for stream in flood.streams if stream.begun)
        kernel = in_kernel(flood.port) + in_kernel(proxy.port)
        seen = Held(proxy.memory() - before, taken - kernel - read_by_client, taken, kernel)
    await flood.deserted()
    return seen


async def _many(flood: Flood, proxy: Proxy, seconds: float) -> list[Finding]:
    before = proxy.memory()
    loop = asyncio.get_running_loop()
    samples: list[tuple[float, float]] = []
    async with stuck(proxy.port, MANY):
        await _at_rest(flood)
        began = loop.time()
        used = proxy.tree.cpu_ns()
        while (now := loop.time() - began) < seconds:
            samples.append((now, await asyncio.to_thread(proxy.memory) - before))
            await asyncio.sleep(min(EVERY, seconds / 40))
        alive = flood.running
        cores = (proxy.tree.cpu_ns() - used) / 1e9 / (loop.time() - began)
    since = min(120.0, seconds / 5)
    most = max(held for _, held in samples)
    later = [held for at, held in samples if at >= since]
    return [
        Finding(
            what=f"{MANY} readers for {seconds / 60:g} minutes: memory more than before, at most",
            measured=most / MIB,
            unit="MiB",
            limit=ALL_HOLD / MIB,
        ),
        Finding(
            what=f"{MANY} readers: of that for each of them",
            measured=most / MANY / KIB,
            unit="KiB",
            limit=ONE_HOLDS / KIB,
        ),
        Finding(
            what=f"{MANY} readers: growth between {since / 60:g} min and the end",
            measured=growth(samples, since) / MIB,
            unit="MiB",
            limit=NOISE / MIB,
        ),
        Finding(
            what=f"{MANY} readers: largest less smallest sample after {since / 60:g} min",
            measured=(max(later) - min(later)) / MIB,
            unit="MiB",
        ),
        Finding(
            what=f"{MANY} readers: streams that were cut although they must not be",
            measured=MANY - alive,
            unit="",
            limit=0,
        ),
        Finding(
            what=f"{MANY} readers: CPU of the process while nothing moves",
            measured=cores * 100,
            unit="% of a core",
        ),
        Finding(what="crashes in the log", measured=proxy.troubles(), unit="", limit=0),
    ]


async def _at_rest(flood: Flood) -> None:
    """Return once no stream has moved for a while."""
    before = -1
    while (now := sum(stream.taken for stream in flood.streams)) != before:
        before = now
        await asyncio.sleep(SETTLE)


@asynccontextmanager
async def stuck(port: int, count: int) -> AsyncIterator[int]:
    """Ask for streams and read the head of each; yields how many bytes were read."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    read = 0
    try:
        for _ in range(count):
            sock = socket.socket()
            sockets.append(sock)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, ASK)
        for sock in sockets:
            head = await loop.sock_recv(sock, 64)
            if not head.startswith(b"HTTP/1.1 200 "):
                raise Collapse(f"no stream: {head!r}")
            read += len(head)
        yield read
    finally:
        for sock in sockets:
            sock.close()
