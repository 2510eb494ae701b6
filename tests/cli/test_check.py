"""`llmproxy check`: are the upstreams there?"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.process import running
from tests.support.upstream import Exchange, scripted

MODELS = {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}


async def engine(exchange: Exchange) -> None:
    """A server with a health page and two models, for those who have the key."""
    request = await exchange.request()
    allowed = request.header(b"authorization") == b"Bearer c4n4ry"
    exchange.json(MODELS if allowed else {}, b"200 OK" if allowed else b"401 Unauthorized")


async def check(environment: Mapping[str, str]) -> tuple[int, list[list[str]]]:
    async with running([sys.executable, "-m", "llmproxy", "check"], environment) as process:
        code = await process.finished()
    assert "Traceback" not in process.stderr
    assert "c4n4ry" not in process.stdout + process.stderr
    return code, [line.split() for line in process.stdout.splitlines()]


async def test_all_is_well() -> None:
    """A line for each upstream, exit code 0."""
    async with scripted(engine) as server:
        upstreams = f"big={server.url};key=c4n4ry,small={server.url};key=env:OTHER"
        environment = {"LLMPROXY_UPSTREAMS": upstreams, "OTHER": "c4n4ry"}
        code, (head, big, small) = await check(environment)

    assert code == 0
    assert head == ["upstream", "url", "state", "models", "ms"]
    assert big[:4] == ["big", f"{server.url}/v1", "up", "2"]
    assert int(big[4]) < 5000
    assert small[:4] == ["small", f"{server.url}/v1", "up", "2"]


async def test_one_is_down() -> None:
    """The cause stands in its line, exit code 1."""
    async with scripted(engine) as server:
        upstreams = f"up={server.url};key=c4n4ry,locked={server.url},gone=http://127.0.0.1:1"
        code, (_, up, locked, gone) = await check({"LLMPROXY_UPSTREAMS": upstreams})

    assert code == 1
    assert up[2] == "up"
    assert " ".join(locked[2:-1]) == "down refuses our key (status 401)"
    assert " ".join(gone[2:-1]) == "down connection refused"


async def test_all_are_asked_at_the_same_time() -> None:
    """One that does not answer holds up no other."""
    forever = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.request()
        await forever.wait()

    async with scripted(silent) as server:
        upstreams = ",".join([server.url] * 4)
        began = asyncio.get_running_loop().time()
        code, (_, *lines) = await check({"LLMPROXY_UPSTREAMS": upstreams})
        took = asyncio.get_running_loop().time() - began

    assert code == 1
    assert [" ".join(line[2:-1]) for line in lines] == ["down no answer within 5 s"] * 4
    assert took < 12


async def test_every_server_that_is_found_has_a_line(tmp_path: Path) -> None:
    """With where it is, which its name does not tell."""
    listed = tmp_path / "servers"
    async with scripted(engine) as server:
        listed.write_text(f"# two\n{server.url};key=c4n4ry\ngone=http://127.0.0.1:1\n")
        code, (_, up, gone) = await check({"LLMPROXY_UPSTREAMS": f"pool=file:{listed}"})

    assert code == 1
    assert up[0].startswith("pool-")
    assert up[1:4] == [f"{server.url}/v1", "up", "2"]
    assert gone[:3] == ["gone", "http://127.0.0.1:1/v1", "down"]


async def test_a_source_that_cannot_be_asked_has_a_line_too(tmp_path: Path) -> None:
    """And so has one where nothing is found."""
    (tmp_path / "none").write_text("# none")
    upstreams = f"agent=consul+http://127.0.0.1:1/llm,listed=file:{tmp_path}/none"
    code, (_, agent, listed) = await check({"LLMPROXY_UPSTREAMS": upstreams})

    assert code == 1
    assert agent[:2] == ["agent", "consul+http://127.0.0.1:1/llm"]
    assert " ".join(agent[2:-1]) == "down Consul cannot be asked (ConnectError)"
    assert " ".join(listed[2:-1]) == "down nothing is found there"
