"""The address that `serve` takes: one that is free, and nobody else's."""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from llmproxy.server.listening import CannotListen, address_of, listening_as
from llmproxy.settings import Settings
from tests.server.family import READY, SERVE, asleep, get, port_of, until, workers_of
from tests.support.client import raw_client
from tests.support.process import running

NOBODY = "http://127.0.0.1:9"


def settings(host: str, port: int = 0) -> Settings:
    return Settings(upstreams=NOBODY, host=host, port=port)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a unix socket may be."""
    return tmp_path / "llmproxy.sock"


@contextmanager
def bound(path: Path, *, backlog: int | None = None) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        if backlog is not None:
            sock.listen(backlog)
        yield sock


# TCP


def test_port_zero_takes_a_free_one() -> None:
    """And the address says which."""
    with listening_as(settings("127.0.0.1")) as sock:
        port = sock.getsockname()[1]
        address = address_of(sock, settings("127.0.0.1"))

        assert port > 0
        assert address == f"http://127.0.0.1:{port}"


def test_ipv6_is_an_address_like_any_other() -> None:
    """Written with brackets in a URL."""
    with listening_as(settings("::1")) as sock:
        port = sock.getsockname()[1]
        with socket.create_connection(("::1", port), 1):
            pass

        assert address_of(sock, settings("::1")) == f"http://[::1]:{port}"


def test_a_name_is_looked_up() -> None:
    """Whatever family it leads to."""
    with listening_as(settings("localhost")) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_named(host: str) -> None:
    """With the reason, and no descriptor is lost over it."""
    with listening_as(settings(host)) as sock:
        port = sock.getsockname()[1]
        held = len(os.listdir("/proc/self/fd"))
        with pytest.raises(CannotListen) as refused, listening_as(settings(host, port)):
            pass

        shown = f"[{host}]" if ":" in host else host
        assert str(refused.value) == f"cannot listen on {shown}:{port}: Address already in use"
        assert len(os.listdir("/proc/self/fd")) == held


async def test_a_port_in_use_ends_the_start() -> None:
    """With exit code 3, one line and no worker."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {"LLMPROXY_UPSTREAMS": NOBODY, "LLMPROXY_PORT": str(port)}
        async with running(SERVE, environment) as process:
            code = await process.finished()

    assert code == 3
    said = f"llmproxy: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert process.stderr == said


# A unix socket


def test_everybody_may_connect_and_nothing_is_left(path: Path) -> None:
    """A front runs as somebody else."""
    with listening_as(settings(f"unix:{path}")) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert address_of(sock, settings(f"unix:{path}")) == f"unix:{path}"

    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    """An earlier run was killed and could not remove it."""
    with bound(path, backlog=1):
        pass
    assert path.exists()

    with listening_as(settings(f"unix:{path}")), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))


def test_a_live_socket_is_refused(path: Path) -> None:
    """It belongs to another process, and stays."""
    with bound(path, backlog=1) as theirs:
        refused = pytest.raises(CannotListen, match="another process does")
        with refused, listening_as(settings(f"unix:{path}")):
            pass

        assert path.exists()
        theirs.accept()[0].close()


def test_a_busy_socket_is_refused(path: Path) -> None:
    """Whoever has no room for one more caller is not gone."""
    with bound(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        refused = pytest.raises(CannotListen, match="another process does")
        with refused, listening_as(settings(f"unix:{path}")):
            pass

        assert path.exists()


def test_what_is_no_socket_is_refused(path: Path) -> None:
    """Nobody's file is removed."""
    path.write_text("mine")

    refused = pytest.raises(CannotListen, match="is no socket")
    with refused, listening_as(settings(f"unix:{path}")):
        pass

    assert path.read_text() == "mine"


def test_a_directory_that_is_missing_is_named(path: Path) -> None:
    """With the reason."""
    missing = path / "missing"

    with pytest.raises(CannotListen) as refused, listening_as(settings(f"unix:{missing}")):
        pass

    assert str(refused.value) == f"cannot listen on unix:{missing}: No such file or directory"


def test_a_successor_keeps_its_socket(path: Path) -> None:
    """It may have taken the path over while we drained."""
    with ExitStack() as successor:
        with listening_as(settings(f"unix:{path}")) as ours:
            ours.close()
            successor.enter_context(listening_as(settings(f"unix:{path}")))

        assert path.exists()


def test_a_socket_that_somebody_removed_is_no_fault(path: Path) -> None:
    """There is nothing left to do."""
    with listening_as(settings(f"unix:{path}")):
        path.unlink()


async def test_a_socket_outlives_a_worker_and_not_the_supervisor(path: Path) -> None:
    """It serves through a replacement of the worker, and is removed at the end."""
    environment = {"LLMPROXY_UPSTREAMS": NOBODY, "LLMPROXY_HOST": f"unix:{path}"}
    async with running(SERVE, environment) as process:
        await process.says(f"{READY} unix:{path}")
        process.signal(signal.SIGHUP)
        await until(lambda: set(workers_of(process.pid)) == {"worker-2"}, "it was replaced")
        async with raw_client(path=path) as client:
            assert (await get(client, b"/health/live"))[0] == 200
        process.signal(signal.SIGTERM)
        assert await process.finished() == 0

    assert not path.exists()


# What is said


async def test_the_start_is_told_once_and_warnings_with_it() -> None:
    """With the port that was found, when every worker serves."""
    environment = {
        "LLMPROXY_UPSTREAMS": "openai://",
        "LLMPROXY_HOST": "::1",
        "LLMPROXY_WORKERS": "2",
        "LLMPROXY_SERVICE_HOST": "10.0.0.1",
    }
    async with running(SERVE, {**environment, "LLMPROXY_PORT": "0"}) as process:
        await process.says(READY)
        assert len(workers_of(process.pid)) == 2
        async with raw_client("::1", port_of(process)) as client:
            assert (await get(client, b"/health/live"))[0] == 200

    said = process.stderr
    assert said.count(READY) == 1
    assert said.count("upstream-1 is openai:// without a key") == 1
    assert said.count("ignored LLMPROXY_SERVICE_HOST") == 1


async def test_nothing_is_told_before_every_worker_serves() -> None:
    """However long one of them takes, and although others have come and gone meanwhile."""
    environment = {
        "LLMPROXY_UPSTREAMS": NOBODY,
        "LLMPROXY_WORKERS": "2",
        "LLMPROXY_PORT": "0",
    }
    async with running(SERVE, environment) as process:
        await until(lambda: len(workers_of(process.pid)) == 2, "both workers were started")
        with asleep(workers_of(process.pid)["worker-2"]):
            process.signal(signal.SIGHUP)
            await until(lambda: "worker-1" not in workers_of(process.pid), "one was replaced")
            assert READY not in process.stderr
        await process.says(READY)
