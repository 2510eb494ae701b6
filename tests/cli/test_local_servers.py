"""`serve` without an upstream: the model servers of this machine."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from tests.support.client import raw_client, request_bytes
from tests.support.ports import free_port
from tests.support.process import Process, answering, running
from tests.support.upstream import Exchange, scripted

# The command, with other ports for the engines than their well-known ones.
PROGRAM = """\
import sys
from llmproxy.cli import main
from llmproxy.routing.discovery import local
local.PLACES = {places!r}
sys.exit(main({command!r}))
"""


async def vllm(exchange: Exchange) -> None:
    """A server with two models."""
    request = await exchange.request()
    data = [{"id": name, "object": "model", "owned_by": "vllm"} for name in ("a", "b")]
    listed = request.target == b"/v1/models"
    answer: Mapping[str, Any] = {"object": "list", "data": data} if listed else {}
    exchange.json(answer, b"200 OK" if listed else b"404 Not Found")


@asynccontextmanager
async def started(
    *places: tuple[int, str], command: str = "serve", **environment: str
) -> AsyncIterator[Process]:
    program = PROGRAM.format(places=places, command=command.split())
    async with running([sys.executable, "-c", program], environment) as process:
        yield process


async def test_a_server_on_this_machine_is_found_and_used() -> None:
    """By every worker, though it was looked for once."""
    port, nobody = free_port(), free_port()
    async with (
        scripted(vllm) as server,
        started(
            (nobody, "ollama"),
            (server.address[1], "vllm"),
            LLMPROXY_PORT=str(port),
            LLMPROXY_WORKERS="2",
        ) as process,
    ):
        at = server.address[1]
        await process.says(f"found vllm on port {at} with 2 models")
        await process.says(f"vllm-{at}  http://127.0.0.1:{at}/v1")
        await answering(process, port, "/health/live")
        async with raw_client(port=port) as client:
            client.send(request_bytes(b"/v1/models", method=b"GET", body=None))
            answer = await client.answer(to=b"GET")
        looked = [r.target for r in server.requests if r.target == b"/health/live"]

    assert [each["id"] for each in orjson.loads(answer.body)["data"]] == ["a", "b"]
    assert len(looked) == 1
    assert "ollama" not in process.stderr


async def test_where_none_is_found_it_says_what_to_set() -> None:
    """And ends with exit code 2."""
    async with started((free_port(), "vllm")) as process:
        code = await process.finished()

    assert code == 2
    assert "no model server was found on this machine" in process.stderr
    assert "LLMPROXY_UPSTREAMS=http://127.0.0.1:8000 llmproxy serve" in process.stderr


async def test_nothing_is_looked_for_where_it_was_said() -> None:
    """Neither with an upstream, nor for the demo, whose answers are always the same."""
    async with scripted(vllm) as server:
        place = (server.address[1], "vllm")
        for command, environment in (
            ("serve", {"LLMPROXY_UPSTREAMS": "http://127.0.0.1:1"}),
            ("serve --demo", {}),
            ("check", {}),
        ):
            port = free_port()
            environment["LLMPROXY_PORT"] = str(port)
            async with started(place, command=command, **environment) as process:
                if command == "check":
                    assert await process.finished() == 2
                else:
                    await answering(process, port, "/health/live")
                assert "found" not in process.stderr

    assert server.requests == []
