"""Starting by itself and ending in every way, each in a process of its own that is strict."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.process import running
from tests.support.upstream import Exchange, scripted

PROGRAMS = Path(__file__).parent / "programs"
WAYS = [
    "closed_by_hand",
    "closed_by_the_end_of_the_loop",
    "closed_by_the_hosts_lifespan",
    "never_closed",
]


async def engine(exchange: Exchange) -> None:
    request = await exchange.request()
    if request.target != b"/v1/stream":
        exchange.json({"data": [{"id": "llama"}]})
        return
    exchange.begin()
    exchange.chunk(b"data: 1\n\n")
    await exchange.closed()


async def run(program: str, *arguments: str) -> tuple[int, str, str]:
    """Run a program with every warning an error; return its exit code and what it said."""
    command = [sys.executable, "-W", "error", str(PROGRAMS / program), *arguments]
    paths = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    strict = {"PYTHONASYNCIODEBUG": "1", "PYTHONPATH": paths}
    async with running(command, strict) as process:
        code = await process.finished(20)
        return code, process.stdout, process.stderr


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_way_of_ending_warns(way: str, loop: str) -> None:
    """No open socket, no pending task, no unawaited coroutine: nothing at all is said."""
    async with scripted(engine) as server:
        code, stdout, stderr = await run("closing.py", server.url, way, loop)

    assert stderr == ""
    assert stdout == ""
    assert code == 0


async def test_importing_changes_nothing() -> None:
    """No environment is read, no socket opened, no signal, logger, thread or policy touched."""
    code, stdout, stderr = await run("importing.py")

    assert stderr == ""
    assert stdout == "changed: [] read: []\n"
    assert code == 0


async def test_the_app_is_made_when_it_is_first_used() -> None:
    """`uvicorn llmproxy:app` reads the environment then, and only then; and makes one, once."""
    program = (
        "import llmproxy; a = llmproxy.app; print(type(a.made()).__name__, a.made() is a.made())"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    async with running(command, {"LLMPROXY_UPSTREAMS": "http://127.0.0.1:1"}) as process:
        code = await process.finished()
        said = process.stdout

    assert said == "LLMProxy True\n"
    assert code == 0


async def test_a_bad_environment_is_told_by_the_first_use() -> None:
    """With the name of the variable."""
    command = [sys.executable, "-m", "uvicorn", "llmproxy:app", "--port", "0"]
    async with running(command, {"LLMPROXY_TIMEOUT_IDLE": "soon"}) as process:
        code = await process.finished()
        said = process.stderr

    assert code != 0
    assert "LLMPROXY_TIMEOUT_IDLE" in said
