"""SIGHUP: the workers are replaced one by one, and nobody notices."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmproxy.server.bounds import Bounds
from tests.server.family import (
    ASK,
    READY,
    SERVE,
    Engine,
    client_of,
    lives,
    port_of,
    refused,
    remainder,
    replaced,
    stream,
    two_workers,
    until,
    workers_of,
)
from tests.support.client import RawClient, raw_client
from tests.support.process import running
from tests.support.streams import CHAT, judge
from tests.support.upstream import scripted
from tests.support.wire import PeerLeft

CLIENTS = 64
THINKING = 0.3  # seconds between two requests of a client: load, but not all of the machine


# Nothing is lost


@dataclass
class Load:
    """Clients that never ask twice, and what became of their requests."""

    host: str = ""
    port: int = 0
    path: Path | None = None
    answered: int = 0
    told_to_close: int = 0
    lost: int = 0
    over: bool = False

    async def client(self) -> None:
        """Ask again and again over one connection; make a new one only when told to."""
        while not self.over:
            began = time.monotonic()
            async with raw_client(self.host, self.port, path=self.path) as client:
                await self._ask_until_told_to_close(client, began)

    async def _ask_until_told_to_close(self, client: RawClient, asked: float) -> None:
        while not self.over:
            last, asked = asked, time.monotonic()
            try:
                client.send(ASK)
                answer = await client.answer()
            except (OSError, PeerLeft):
                # A busy machine may hold us up for longer than a worker that leaves waits.
                self.lost += asked - last < Bounds().lame_duck
                return
            if answer.status != 200 or not client.complete:
                self.lost += 1
                return
            self.answered += 1
            if answer.header(b"connection") == b"close":
                self.told_to_close += 1
                return
            await asyncio.sleep(THINKING)


@pytest.mark.parametrize(
    ("over", "rounds"), [("127.0.0.1", 4), ("::1", 3), ("unix", 3)]
)  # ten in all
async def test_no_request_is_lost(over: str, rounds: int, tmp_path: Path) -> None:
    """64 clients that keep their connections and never ask twice; nor does a descriptor leak."""
    path = tmp_path / "llmproxy.sock"
    settings = {"LLMPROXY_HOST": f"unix:{path}"} if over == "unix" else {"LLMPROXY_HOST": over}
    async with scripted(Engine().script) as server:
        environment = {"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_WORKERS": "2", **settings}
        environment["LLMPROXY_PORT"] = "0"
        async with running(SERVE, environment) as process:
            await process.says(READY)
            load = Load(path=path) if over == "unix" else Load(over, port_of(process))
            descriptors = held_by(process.pid)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(load.client())
                for number in range(1, rounds + 1):
                    process.signal(signal.SIGHUP)
                    await replaced(process, number)
                load.over = True
            await until(lambda: len(workers_of(process.pid)) == 2, "the old workers ended")
            await until(lambda: held_by(process.pid) == descriptors, "no descriptor was kept")

            assert load.lost == 0
            assert load.answered > CLIENTS * rounds
            assert load.told_to_close > CLIENTS
            assert set(workers_of(process.pid)) == {
                f"worker-{2 * rounds + 1}",
                f"worker-{2 * rounds + 2}",
            }
            assert process.stderr.count(READY) == 1


def held_by(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_running_streams_finish() -> None:
    """With the worker that began them, however long they take; the new ones serve meanwhile."""
    engine = Engine()
    async with two_workers(engine) as proxy, AsyncExitStack() as stack:
        old = [await stack.enter_async_context(client_of(proxy, f"worker-{n}")) for n in (1, 2)]
        for client in old:
            await stream(client)
        proxy.process.signal(signal.SIGHUP)
        await replaced(proxy.process)
        async with client_of(proxy, "worker-3") as one, client_of(proxy, "worker-4") as two:
            for client in (one, two):
                client.send(ASK)
                assert (await client.answer()).header(b"connection") is None
        engine.go_on.set()
        rests = [await remainder(client) for client in old]

        assert [CHAT.events[0] + rest for rest in rests] == [CHAT.whole, CHAT.whole]
        await until(
            lambda: set(workers_of(proxy.process.pid)) == {"worker-3", "worker-4"},
            "the old workers ended",
        )


# Signals at awkward moments


async def test_told_twice_it_replaces_those_who_were_not_yet() -> None:
    """A running stream goes on, and in the end there are as many workers as before."""
    engine = Engine()
    async with two_workers(engine) as proxy, client_of(proxy, "worker-1") as client:
        await stream(client)
        proxy.process.signal(signal.SIGHUP)
        await until(lambda: len(workers_of(proxy.process.pid)) > 2, "a replacement was started")
        proxy.process.signal(signal.SIGHUP)
        await replaced(proxy.process)
        engine.go_on.set()
        rest = await remainder(client)

        assert CHAT.events[0] + rest == CHAT.whole
        # The first replacement had read the configuration before the second order came.
        await until(
            lambda: set(workers_of(proxy.process.pid)) == {"worker-4", "worker-5"},
            "the old workers ended",
        )


async def test_told_while_it_starts_it_serves_all_the_same() -> None:
    """With as many workers as configured."""
    environment = {
        "LLMPROXY_UPSTREAMS": "http://127.0.0.1:9",
        "LLMPROXY_WORKERS": "2",
        "LLMPROXY_PORT": "0",
    }
    async with running(SERVE, environment) as process:
        await until(lambda: workers_of(process.pid), "a worker was started")
        process.signal(signal.SIGHUP)
        await replaced(process)
        await process.says(READY)
        await until(
            lambda: set(workers_of(process.pid)) == {"worker-3", "worker-4"},
            "two new workers were left",
        )
        assert process.stderr.count(READY) == 1


async def test_told_to_end_meanwhile_it_drains_every_worker() -> None:
    """Those that were replaced already finish their streams like the others."""
    engine = Engine()
    async with two_workers(engine) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(proxy, f"worker-{n}")) for n in (1, 2)]
        for client in clients:
            await stream(client)
        proxy.process.signal(signal.SIGHUP)
        await until(lambda: "worker-4" in workers_of(proxy.process.pid), "one was replaced")
        everybody = workers_of(proxy.process.pid).values()
        proxy.process.signal(signal.SIGTERM)
        await until(lambda: refused(proxy.port), "the drain began")
        engine.go_on.set()
        rests = [await remainder(client) for client in clients]
        assert await proxy.process.finished() == 0

    assert [CHAT.events[0] + rest for rest in rests] == [CHAT.whole, CHAT.whole]
    assert not any(lives(pid) for pid in everybody)


async def test_told_twice_to_end_meanwhile_it_ends_at_once() -> None:
    """The old workers and the new ones alike."""
    engine = Engine()
    async with two_workers(engine) as proxy, client_of(proxy, "worker-1") as client:
        await stream(client)
        proxy.process.signal(signal.SIGHUP)
        await until(lambda: "worker-4" in workers_of(proxy.process.pid), "one was replaced")
        everybody = workers_of(proxy.process.pid).values()
        told_at = time.monotonic()
        proxy.process.signal(signal.SIGTERM)
        await proxy.process.says("draining")
        proxy.process.signal(signal.SIGTERM)
        rest = await remainder(client)
        assert await proxy.process.finished() == 0
        lasted = time.monotonic() - told_at

    assert lasted < 15.0
    assert judge(CHAT, CHAT.events[0] + rest).error
    assert not any(lives(pid) for pid in everybody)


async def test_one_who_dies_while_its_replacement_starts_is_replaced_once() -> None:
    """There are never more workers than configured in the end."""
    async with two_workers(Engine()) as proxy:
        worker = workers_of(proxy.process.pid)["worker-1"]
        proxy.process.signal(signal.SIGHUP)
        await until(lambda: "worker-3" in workers_of(proxy.process.pid), "a replacement began")
        os.kill(worker, signal.SIGKILL)
        await replaced(proxy.process)
        await until(
            lambda: set(workers_of(proxy.process.pid)) == {"worker-3", "worker-4"},
            "two new workers were left",
        )
