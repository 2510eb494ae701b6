"""`/metrics` over several workers, in the life of real ones."""

import os
import signal

from tests.server.family import (
    ASK,
    READY,
    REPLACED,
    Engine,
    board_of,
    client_of,
    get,
    until,
    workers_of,
)
from tests.support.client import RawClient
from tests.support.proxy import Proxy, serving
from tests.support.rig import sample
from tests.support.upstream import scripted


async def ask(client: RawClient, times: int) -> None:
    for _ in range(times):
        client.send(ASK)
        assert (await client.answer()).status == 200


async def answered(client: RawClient) -> float:
    """Return how many requests were answered, as `/metrics` tells."""
    _, page = await get(client, b"/metrics")
    labels = {"model": "m", "upstream": "upstream-1", "status": "200", "outcome": "completed"}
    return sample(page.encode(), "llmproxy_requests_total", **labels) or 0.0


async def counted_by(proxy: Proxy, worker: str, times: int) -> None:
    """Let a worker answer requests, and wait until it has told the others."""
    async with client_of(proxy, worker) as client:
        await ask(client, times)
        path = board_of(workers_of(proxy.process.pid)[worker]) / f"{worker}.json"
        written = path.stat().st_mtime_ns
        await until(lambda: path.stat().st_mtime_ns > written, "it told the others")


async def test_counters_never_go_down() -> None:
    """Over two workers, one that is killed, one that is told to end, and a replacement."""
    async with (
        scripted(Engine().script) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_WORKERS": "2"}) as proxy,
    ):
        process = proxy.process
        await process.says(READY)
        board = board_of(workers_of(process.pid)["worker-1"])
        await counted_by(proxy, "worker-1", 2)
        await counted_by(proxy, "worker-2", 3)
        for name in ("worker-1", "worker-2"):
            async with client_of(proxy, name) as client:
                assert await answered(client) == 5

        os.kill(workers_of(process.pid)["worker-1"], signal.SIGKILL)
        await until(lambda: "worker-3" in workers_of(process.pid), "it was replaced")
        for name in ("worker-2", "worker-3"):
            async with client_of(proxy, name) as client:
                assert await answered(client) == 5

        async with client_of(proxy, "worker-2") as client:
            await ask(client, 4)
            os.kill(workers_of(process.pid)["worker-2"], signal.SIGTERM)
        await until(lambda: "worker-4" in workers_of(process.pid), "it was replaced")
        async with client_of(proxy, "worker-3") as client:
            assert await answered(client) == 9
            await ask(client, 1)

        process.signal(signal.SIGHUP)
        await process.says(REPLACED)
        new = {"worker-5", "worker-6"}
        await until(lambda: set(workers_of(process.pid)) == new, "the old workers ended")
        async with client_of(proxy, "worker-5") as client:
            _, page = await get(client, b"/metrics")
            assert sample(page.encode(), "llmproxy_inflight_requests") == 1
        for name in sorted(new):
            async with client_of(proxy, name) as client:
                assert await answered(client) == 10

        assert board.exists()
        process.signal(signal.SIGTERM)
        assert await process.finished() == 0
        assert not board.exists()
