"""Model servers on this machine."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from llmproxy.routing.discovery import local
from llmproxy.routing.discovery.local import PLACES, LocalServer, local_servers
from tests.support.ports import free_port
from tests.support.proxy import serving
from tests.support.upstream import Exchange, Script, ScriptedServer, scripted


def models(*names: str, **more: object) -> dict[str, object]:
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}


def pages(said: Mapping[str, Any]) -> Script:
    """Answer what is known, and 404 for the rest."""

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        page = said.get(request.target.decode())
        exchange.json(page, b"200 OK" if page is not None else b"404 Not Found")

    return script


# What each engine answers, as its source or its documentation has it.
OLLAMA = {"/v1/models": models("l:1b", owned_by="library"), "/api/version": {"version": "0.9.0"}}
LMSTUDIO = {
    "/v1/models": models("qwen", owned_by="organization_owner"),
    "/api/v0/models": models("qwen", state="loaded"),
}
LOCALAI = {"/v1/models": models("gpt-4"), "/readyz": {}}
LLAMACPP = {"/v1/models": {"models": [], **models("m.gguf", owned_by="llamacpp")}, "/props": {}}
TGI = {"/v1/models": models("tiny", owned_by="tiny"), "/info": {"model_id": "tiny"}}
TEXTGEN = {
    "/v1/models": models("m", owned_by="user"),
    "/v1/internal/model/info": {"model_name": "m", "lora_names": []},
}
VLLM = {"/v1/models": models("a", "b", owned_by="vllm")}
SGLANG = {"/v1/models": models("a", owned_by="sglang")}


@asynccontextmanager
async def machine(*servers: Mapping[str, Any]) -> AsyncIterator[list[ScriptedServer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(scripted(pages(said))) for said in servers]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("ollama", OLLAMA),
        ("lmstudio", LMSTUDIO),
        ("localai", LOCALAI),
        ("llamacpp", LLAMACPP),
        ("tgi", TGI),
        ("textgen", TEXTGEN),
        ("vllm", VLLM),
        ("sglang", SGLANG),
    ],
)
async def test_each_engine_is_known_by_what_it_says(engine: str, said: Mapping[str, Any]) -> None:
    """On a port where another one is known to be, too."""
    async with machine(said) as [server]:
        port = server.address[1]
        [found] = await local_servers(besides=1, places=[(port, "localai"), (port, engine)])

    assert found == LocalServer(engine, port, 2 if engine == "vllm" else 1)
    assert {request.method for request in server.requests} == {b"GET"}
    assert all(request.body == b"" for request in server.requests)


async def test_a_server_that_does_not_say_what_it_is_is_one_all_the_same() -> None:
    """It has models, and speaks the API."""
    async with machine({"/v1/models": models("m", owned_by="me")}) as [server]:
        port = server.address[1]
        found = await local_servers(besides=1, places=[(port, "vllm"), (port, "tgi")])

    assert found == [LocalServer("http", port, 1)]


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        [],
        [{"id": "a"}],
        "models",
        {"data": [{"id": "a"}]},
        {"object": "list"},
        {"object": "list", "data": None},
        {"object": "list", "data": []},
        {"object": "list", "data": [{"name": "a"}]},
        {"object": "list", "data": [{"id": 1}]},
        {"object": "list", "data": ["a"]},
        {"object": "list", "data": {"id": "a"}},
    ],
)
async def test_somebodys_web_server_is_left_alone(said: object) -> None:
    """After the one question that tells that it is none."""
    async with machine({"/v1/models": said}) as [server]:
        port = server.address[1]
        places = [(port, engine) for engine in local.ENGINES]
        assert await local_servers(besides=1, places=places) == []

    assert [request.target for request in server.requests] == [b"/v1/models"]


async def test_a_page_is_no_list() -> None:
    """A server of web pages answers everything with one."""

    async def page(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<!doctype html>")

    async with scripted(page) as server:
        assert await local_servers(besides=1, places=[(server.address[1], "tgi")]) == []


async def test_we_are_not_found_ourselves() -> None:
    """Our own port is not asked; what answers there could be the one that we replace."""
    async with machine(VLLM) as [server]:
        port = server.address[1]
        assert await local_servers(besides=port, places=[(port, "vllm")]) == []

    assert server.requests == []


async def test_another_llmproxy_is_not_found() -> None:
    """Though it has a list of models: that of the servers behind it."""
    async with (
        machine({**VLLM, "/health": {}}) as [server],
        serving({"LLMPROXY_UPSTREAMS": server.url}) as proxy,
    ):
        assert await local_servers(besides=1, places=[(proxy.port, "vllm")]) == []
        asked_through_it = [r.target for r in server.requests]

    assert b"/v1/models" in asked_through_it


async def test_all_are_asked_at_the_same_time_and_not_for_long() -> None:
    """Silent, endless, slow and broken ones hold up nobody else."""
    forever = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.request()
        await forever.wait()

    async def endless(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.lost:
            exchange.chunk(b"x" * 65_536)
            await asyncio.sleep(0.001)

    async def slow(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.lost:
            exchange.chunk(b" ")
            await asyncio.sleep(0.05)

    async def broken(exchange: Exchange) -> None:
        await exchange.request()
        exchange.reset()

    async with AsyncExitStack() as stack:
        scripts = [silent] * 4 + [endless, slow, broken, pages(VLLM)]
        servers = [await stack.enter_async_context(scripted(script)) for script in scripts]
        places = [(server.address[1], "vllm") for server in servers] + [(free_port(), "tgi")]
        began = asyncio.get_running_loop().time()
        found = await local_servers(besides=1, places=places)
        took = asyncio.get_running_loop().time() - began

    assert found == [LocalServer("vllm", servers[-1].address[1], 2)]
    assert took < 4 * local.WITHIN


def test_the_well_known_ports() -> None:
    """As they are promised."""
    assert set(PLACES) == {
        (11434, "ollama"), (8000, "vllm"), (30000, "sglang"), (1234, "lmstudio"),
        (8080, "llamacpp"), (8080, "localai"), (3000, "tgi"), (5000, "textgen"),
    }  # fmt: skip
