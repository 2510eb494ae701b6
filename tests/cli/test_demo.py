"""`serve --demo` and `demo-upstream`: something to try in one line."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.ports import free_port
from tests.support.process import Process, answering, running
from tests.support.wire import patience

LLMPROXY = [sys.executable, "-m", "llmproxy"]


@asynccontextmanager
async def demo(**environment: str) -> AsyncIterator[tuple[Process, int]]:
    port = free_port()
    environment = {"LLMPROXY_PORT": str(port), **environment}
    async with running([*LLMPROXY, "serve", "--demo"], environment) as process:
        await answering(process, port, "/health/live")
        yield process, port


def demo_of(process: Process) -> int:
    """Return the process id of the demo upstream."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = file.read().split()
    [child] = [pid for pid in children if b"demo-upstream" in command_of(pid)]
    return int(child)


def command_of(pid: str) -> bytes:
    """Return the command line of a process."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def alive(pid: int) -> bool:
    """Tell whether a process still runs; one that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the latter when it goes while it is read
        return False


async def gone(pid: int) -> None:
    async with patience(f"process {pid} is gone"):
        while alive(pid):  # noqa: ASYNC110  # it is not our child, so nobody tells us
            await asyncio.sleep(0.02)


async def test_the_line_that_is_printed_works_as_pasted() -> None:
    """A shell runs it, and words come back one by one."""
    async with demo() as (process, port):
        await process.says("curl -N")
        [line] = [line.strip() for line in process.stderr.splitlines() if "curl -N" in line]
        shell = ["sh", "-c", f"{line} --silent --fail"]
        async with running(shell) as curl:
            code = await curl.finished()

    assert code == 0
    assert f"http://127.0.0.1:{port}/v1/chat/completions" in shlex.split(line)
    assert curl.stdout.count("data: ") > 10
    assert curl.stdout.endswith("data: [DONE]\n\n")
    assert "llmproxy-demo" in curl.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_the_demo_does_not_outlive_its_parent(number: signal.Signals) -> None:
    """However that one ends."""
    async with demo() as (process, _):
        child = demo_of(process)
        process.signal(number)
        try:
            await gone(child)
        finally:
            if alive(child):  # it would hold our pipe, and this test, for ever
                os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_keyboard_interrupt_reaches_only_the_parent() -> None:
    """A terminal sends Ctrl-C to all of its session; streams must live while we drain."""
    async with demo() as (process, _):
        assert os.getsid(demo_of(process)) != os.getsid(process.pid)


async def test_no_demo_is_started_beside_real_servers() -> None:
    """It would take a share of their requests."""
    async with demo(LLMPROXY_UPSTREAMS="big=http://127.0.0.1:1") as (process, _):
        await process.says("no demo is started")
        await process.says("big")

        assert "curl" not in process.stderr


async def test_the_demo_upstream_stands_alone_too() -> None:
    """On a port of one's choice, until it is told to stop."""
    port = free_port()
    async with running([*LLMPROXY, "demo-upstream", "--port", str(port)]) as process:
        await process.says(f"demo upstream listens on http://127.0.0.1:{port}")
        await answering(process, port, "/v1/models")


async def test_a_port_that_is_taken_is_told() -> None:
    """Instead of a traceback."""
    port = free_port()
    command = [*LLMPROXY, "demo-upstream", "--port", str(port)]
    async with running(command) as first:
        await first.says("listens on")
        async with running(command) as second:
            code = await second.finished()

    assert code == 1
    assert "cannot listen" in second.stderr
    assert "Traceback" not in second.stderr
