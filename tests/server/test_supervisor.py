"""Workers that die, that cannot start, and that lose their supervisor."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmproxy.server import supervisor, worker_process
from llmproxy.server.supervisor import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Supervisor,
    board_directory,
    pause_after,
)
from llmproxy.server.worker_process import WorkerProcess
from tests.server.family import (
    READY,
    REPLACED,
    SERVE,
    Engine,
    able_to_import,
    board_of,
    client_of,
    get,
    index_of,
    lives,
    port_of,
    remainder,
    stream,
    until,
    workers_of,
)
from tests.support.client import raw_client, request_bytes
from tests.support.process import running
from tests.support.proxy import serving
from tests.support.streams import CHAT
from tests.support.upstream import scripted
from tests.support.wire import PeerLeft

BROKEN_LAYER = """
import os, sys
if "--lifeline" in sys.argv:  # only where requests are served
    os._exit(7)
def Layer(app):
    return app
"""
NOBODY = "http://127.0.0.1:9"


# How long a dead worker stays away


def test_pauses_grow_up_to_a_longest() -> None:
    """Twice as long with every death in a row."""
    pauses = [pause_after(deaths, luck=1.0) for deaths in range(1, 9)]

    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_the_pause_is_never_too_long_to_be_reckoned() -> None:
    """A worker may have been dying for weeks."""
    assert pause_after(1_000_000, luck=1.0) == LONGEST_PAUSE


def test_after_a_long_life_the_pause_is_short() -> None:
    """No earlier death counts."""
    assert pause_after(0, luck=1.0) == FIRST_PAUSE


def test_those_who_die_together_do_not_come_back_together() -> None:
    """Luck takes off up to a half."""
    assert pause_after(3, luck=0.0) == 0.5
    assert pause_after(3, luck=0.5) == 0.75


def crowded(monkeypatch: pytest.MonkeyPatch) -> tuple[Supervisor, list[str]]:
    """Return a supervisor on a machine without room for processes, and the names it tried."""
    tried: list[str] = []

    def start(name: str, *, listening: socket.socket, **given: object) -> WorkerProcess:
        assert listening.fileno() >= 0
        tried.append(name)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "start", start)
    made = Supervisor(
        listening=socket.socket(),
        count=2,
        drain_timeout=1,
        on_ready=lambda: None,
        reread=lambda: 1.0,
    )
    return made, tried


def test_without_room_for_a_process_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot be started is one that has died: the others go on."""
    made, tried = crowded(monkeypatch)
    made._announced = True

    with made.listening:
        made._start(100.0)
        made._start(100.0)

    assert tried == ["worker-1", "worker-2"]
    assert 100.1 < made._due[0] <= 100.25 <= made._due[1] <= 100.5


def test_without_room_for_the_first_worker_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left waiting for it."""
    made, tried = crowded(monkeypatch)

    code = made.run()

    assert code == 1
    assert tried == ["worker-1"]


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """A supervisor blocks signals for good; here it is not alone in its process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_without_memory_for_files_there_is_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some systems have no /dev/shm, some do not let us write there."""
    monkeypatch.setattr(supervisor, "MEMORY", str(tmp_path / "missing"))

    with board_directory() as board:
        assert os.listdir(board) == []

    assert not os.path.exists(board)


# A worker that dies


async def test_a_killed_worker_is_replaced_and_the_others_go_on() -> None:
    """A stream through another worker is whole; soon there are two workers again."""
    engine = Engine()
    async with (
        scripted(engine.script) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_WORKERS": "2"}) as proxy,
    ):
        await proxy.process.says(READY)
        workers = workers_of(proxy.process.pid)
        assert set(workers) == {"worker-1", "worker-2"}
        async with client_of(proxy, "worker-1") as victim, client_of(proxy, "worker-2") as other:
            await stream(victim)
            await stream(other)
            os.kill(workers["worker-1"], signal.SIGKILL)
            await victim.closed()
            await until(
                lambda: set(workers_of(proxy.process.pid)) == {"worker-2", "worker-3"},
                "a worker was started",
            )
            async with client_of(proxy, "worker-3"):
                pass
            engine.go_on.set()
            rest = await remainder(other)

        assert CHAT.events[0] + rest == CHAT.whole
        assert other.complete
        assert "worker-1 ended by signal 9" in proxy.process.stderr
        assert proxy.process.stderr.count(READY) == 1


async def test_whoever_comes_in_the_place_of_a_worker_has_its_part() -> None:
    """What all may do together is divided among them, and one may get less than another."""
    async with serving({"LLMPROXY_UPSTREAMS": NOBODY, "LLMPROXY_WORKERS": "2"}) as proxy:
        await proxy.process.says(READY)
        workers = workers_of(proxy.process.pid)
        first = {name: index_of(pid) for name, pid in workers.items()}
        os.kill(workers["worker-1"], signal.SIGKILL)
        async with client_of(proxy, "worker-3"):
            made_up = index_of(workers_of(proxy.process.pid)["worker-3"])
        proxy.process.signal(signal.SIGHUP)
        await proxy.process.says(REPLACED)
        renewed = {index_of(workers_of(proxy.process.pid)[f"worker-{n}"]) for n in (4, 5)}

    assert first == {"worker-1": 0, "worker-2": 1}
    assert made_up == 0
    assert renewed == {0, 1}


async def test_a_worker_that_ends_by_itself_is_replaced() -> None:
    """Even the only one, and even if it ended in good order."""
    async with serving({"LLMPROXY_UPSTREAMS": NOBODY}) as proxy:
        os.kill(workers_of(proxy.process.pid)["worker-1"], signal.SIGTERM)
        await proxy.process.says("worker-1 ended with exit code 0")

        async with client_of(proxy, "worker-2") as client:
            assert (await get(client, b"/health/live"))[0] == 200


async def test_a_worker_that_cannot_start_ends_the_whole(tmp_path: Path) -> None:
    """With its code, at once, and without a word of being ready."""
    (tmp_path / "broken_layer.py").write_text(BROKEN_LAYER)
    environment = {
        "LLMPROXY_UPSTREAMS": NOBODY,
        "LLMPROXY_MIDDLEWARE": "broken_layer:Layer",
        "LLMPROXY_WORKERS": "2",
        "LLMPROXY_PORT": "0",
        **able_to_import(tmp_path),
    }
    async with running(SERVE, environment) as process:
        code = await process.finished()

    assert code == 7
    assert "ended with exit code 7 before it served" in process.stderr
    assert READY not in process.stderr


# A supervisor that dies


async def test_without_their_supervisor_workers_drain_and_end() -> None:
    """A running stream is finished first, nobody new is let in, and nothing is left behind."""
    engine = Engine()
    async with (
        scripted(engine.script) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_WORKERS": "2"}) as proxy,
    ):
        await proxy.process.says(READY)
        workers = workers_of(proxy.process.pid)
        board = board_of(workers["worker-1"])
        async with client_of(proxy, "worker-1") as client:
            await stream(client)
            proxy.process.signal(signal.SIGKILL)
            await until(lambda: not lives(workers["worker-2"]), "the idle worker ended")
            assert lives(workers["worker-1"])
            with pytest.raises((OSError, PeerLeft)):
                async with raw_client(port=proxy.port) as late:
                    late.send(request_bytes(b"/health/live", method=b"GET", body=None))
                    await late.answer()
            engine.go_on.set()
            rest = await remainder(client)

        assert CHAT.events[0] + rest == CHAT.whole
        await until(lambda: not lives(workers["worker-1"]), "the other one ended")
        assert not board.exists()
        assert "the supervisor is gone: draining" in proxy.process.stderr
        assert "Traceback" not in proxy.process.stderr


async def test_a_worker_whose_supervisor_died_meanwhile_does_not_begin() -> None:
    """It is told as soon as it serves."""
    environment = {"LLMPROXY_UPSTREAMS": NOBODY, "LLMPROXY_PORT": "0"}
    async with running(SERVE, environment) as process:
        await until(lambda: workers_of(process.pid), "a worker was started")
        worker = workers_of(process.pid)["worker-1"]
        process.signal(signal.SIGKILL)

        await until(lambda: not lives(worker), "the worker ended")
        assert "Traceback" not in process.stderr


# A terminal


async def test_ctrl_c_drains() -> None:
    """A terminal sends SIGINT to the whole foreground group: a stream is finished all the same."""
    engine = Engine()
    command = ["setsid", *SERVE]
    async with scripted(engine.script) as server:
        environment = {"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_PORT": "0"}
        async with running(command, environment) as process:
            await process.says(READY)
            async with raw_client(port=port_of(process)) as client:
                await stream(client)
                assert all(
                    os.getpgid(worker) != process.pid for worker in workers_of(process.pid).values()
                )
                os.killpg(process.pid, signal.SIGINT)
                await process.says("draining")
                engine.go_on.set()
                rest = await remainder(client)
            code = await process.finished()

    assert CHAT.events[0] + rest == CHAT.whole
    assert code == 0
    assert "Traceback" not in process.stderr


# What must not grow


def test_starting_holds_one_descriptor_for_each_worker() -> None:
    """And none after it has ended."""
    held = len(os.listdir("/proc/self/fd"))
    listening, peer = socket.socketpair()
    with listening, peer:
        before = len(os.listdir("/proc/self/fd"))
        worker = worker_process.start(
            "worker-1",
            index=0,
            listening=listening,
            board="/",
            drain_timeout=1,
            replaces=None,
            now=0,
        )
        during = len(os.listdir("/proc/self/fd"))
        worker.process.kill()
        worker.process.wait()
        worker.lifeline.close()
        after = len(os.listdir("/proc/self/fd"))

    assert during == before + 1
    assert after == before == held + 2
