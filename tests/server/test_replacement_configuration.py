"""SIGHUP: what the new workers read, and what becomes of faults in it."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.server.family import (
    ASK,
    READY,
    SERVE,
    Engine,
    able_to_import,
    port_of,
    replaced,
    two_workers,
    until,
    workers_of,
)
from tests.support.client import raw_client
from tests.support.process import Process, running
from tests.support.upstream import scripted


@asynccontextmanager
async def configured_by(config: Path) -> AsyncIterator[Process]:
    async with running(SERVE, {"LLMPROXY_CONFIG": str(config)}) as process:
        await process.says(READY)
        yield process


def write(config: Path, upstream: str, **more: object) -> None:
    lines = [f'upstreams = "{upstream}"', "port = 0"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in more.items()]
    config.write_text("\n".join(lines))


async def asked(port: int) -> str:
    async with raw_client(port=port) as client:
        client.send(ASK)
        model: str = json.loads((await client.answer()).body)["model"]
        return model


async def test_a_changed_file_takes_effect(tmp_path: Path) -> None:
    """Requests go to the new upstream, and the new drain time is kept by both sides."""
    config = tmp_path / "llmproxy.toml"
    old, new = Engine("old"), Engine("new")
    async with scripted(old.script) as first, scripted(new.script) as second:
        write(config, first.url)
        async with configured_by(config) as process:
            port = port_of(process)
            assert await asked(port) == "old"

            write(config, second.url, drain_timeout=7)
            process.signal(signal.SIGHUP)
            await replaced(process)
            await until(lambda: set(workers_of(process.pid)) == {"worker-2"}, "the old one ended")

            assert await asked(port) == "new"
            process.signal(signal.SIGTERM)
            await process.finished()
            assert "within 7 s" in process.stderr


async def test_what_takes_a_restart_is_said_to(tmp_path: Path) -> None:
    """The address and the number of workers stay; the rest of the file takes effect."""
    config = tmp_path / "llmproxy.toml"
    old, new = Engine("old"), Engine("new")
    async with scripted(old.script) as first, scripted(new.script) as second:
        write(config, first.url)
        async with configured_by(config) as process:
            port = port_of(process)
            write(config, second.url)
            process.signal(signal.SIGHUP)
            await replaced(process)
            unchanged = process.stderr

            write(config, second.url, host="::1", workers=2)
            process.signal(signal.SIGHUP)
            await replaced(process, 2)
            await until(lambda: set(workers_of(process.pid)) == {"worker-3"}, "the old one ended")

            assert await asked(port) == "new"
            assert "takes a restart" not in unchanged
            for variable in ("LLMPROXY_HOST", "LLMPROXY_WORKERS"):
                assert f"{variable} has changed: that takes a restart" in process.stderr
            assert "LLMPROXY_PORT has changed" not in process.stderr


async def test_with_faults_the_workers_stay(tmp_path: Path) -> None:
    """Every fault is in the log; a file that was put right is taken the next time."""
    config = tmp_path / "llmproxy.toml"
    old, new = Engine("old"), Engine("new")
    async with scripted(old.script) as first, scripted(new.script) as second:
        write(config, first.url)
        async with configured_by(config) as process:
            before = workers_of(process.pid)
            write(config, "ftp://gpu1", drain_timeout=-1, surprise=1)
            process.signal(signal.SIGHUP)
            await process.says("the workers stay as they are")

            assert workers_of(process.pid) == before
            assert await asked(port_of(process)) == "old"
            for fault in ("ftp://gpu1", "drain_timeout", "surprise"):
                assert fault.lower() in process.stderr.lower()

            write(config, second.url)
            process.signal(signal.SIGHUP)
            await replaced(process)
            await until(lambda: set(workers_of(process.pid)) == {"worker-2"}, "the old one ended")
            assert await asked(port_of(process)) == "new"


async def test_a_replacement_that_cannot_start_leaves_the_old_worker(tmp_path: Path) -> None:
    """What is wrong may show only when a worker starts."""
    layer = tmp_path / "shaky_layer.py"
    layer.write_text("class Layer:\n    def __init__(self, app): self.app = app\n")
    with layer.open("a") as more:
        more.write("    async def __call__(self, *asgi): await self.app(*asgi)\n")
    engine = Engine()
    settings = {"LLMPROXY_MIDDLEWARE": "shaky_layer:Layer", **able_to_import(tmp_path)}
    async with two_workers(engine, **settings) as proxy:
        before = workers_of(proxy.process.pid)
        layer.write_text(
            "import sys\nif '--lifeline' in sys.argv: raise SystemExit(7)\nclass Layer: pass\n"
        )
        proxy.process.signal(signal.SIGHUP)
        await proxy.process.says("the old workers stay")

        assert workers_of(proxy.process.pid) == before
        assert await asked(proxy.port) == "engine"
