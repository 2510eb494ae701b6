"""Servers that are registered with Consul: an agent on a socket says what the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from llmproxy.routing.discovery import consul
from llmproxy.routing.discovery.consul import ConsulSource
from llmproxy.routing.discovery.source import LookFailed
from tests.settings.test_templates import template
from tests.support.tls import Authority
from tests.support.upstream import Exchange, Script, ScriptedServer, json_answer, scripted
from tests.support.wire import patience


def instance(host: str, port: int = 8000, **service: object) -> dict[str, object]:
    return {
        "Node": {"Address": "10.9.9.9"},
        "Service": {"Address": host, "Port": port, **service},
        "Checks": [{"Status": "passing"}],
    }


def answered(exchange: Exchange, instances: object, index: str) -> None:
    body = orjson.dumps(instances)
    head = b"HTTP/1.1 200 OK\r\nx-consul-index: %b\r\ncontent-length: %d\r\n\r\n"
    exchange.send(head % (index.encode(), len(body)) + body)


@asynccontextmanager
async def asking(
    script: Script, options: str = "", kind: str = "vllm"
) -> AsyncIterator[tuple[ConsulSource, ScriptedServer]]:
    async with scripted(script) as agent:
        host, port = agent.address
        source = ConsulSource(template(f"pool=consul+{kind}://{host}:{port}/llm{options}"))
        try:
            yield source, agent
        finally:
            await source.aclose()


async def test_each_instance_that_passes_is_a_server() -> None:
    """At its own address, else at that of its node; on its port, else on the engine's usual one."""
    instances = [instance("10.0.0.2"), instance("", 8001), instance("10.0.0.1", 0)]
    async with asking(json_answer(instances), ";models=m") as (source, agent):
        found = await source.look()

    assert [(each.host, each.port) for each in found] == [
        ("10.0.0.1", 8000),
        ("10.0.0.2", 8000),
        ("10.9.9.9", 8001),
    ]
    assert {(each.preset, each.models, each.found_by, each.path) for each in found} == {
        ("vllm", ("m",), "", "")
    }
    [request] = agent.requests
    assert request.target == b"/v1/health/service/llm?passing=1"


async def test_weights_are_those_of_the_registration() -> None:
    """Times that of the template."""
    heavy = instance("10.0.0.1", Weights={"Passing": 5, "Warning": 1})
    async with asking(json_answer([heavy, instance("10.0.0.2")]), ";weight=2") as (source, _):
        found = await source.look()

    assert [each.weight for each in found] == [10, 2]


async def test_the_token_is_shown_to_consul_alone() -> None:
    """It would open more than a model server is to know."""
    async with asking(json_answer([instance("10.0.0.1")]), ";key=c4n4ry") as (source, agent):
        [found] = await source.look()

    assert agent.requests[0].header(b"x-consul-token") == b"c4n4ry"
    assert found.credentials == ()


async def test_a_change_is_told_by_a_question_that_is_held_back() -> None:
    """The second question names the index of the first answer, and is answered when it changes."""
    asked_again, change = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        asked = parse_qs(urlsplit((await exchange.request()).target.decode()).query)
        if "index" not in asked:
            answered(exchange, [instance("10.0.0.1")], "17")
        else:
            assert asked == {"passing": ["1"], "index": ["17"], "wait": ["60s"]}
            asked_again.set()
            await change.wait()
            answered(exchange, [], "18")

    async with asking(script) as (source, _):
        assert len(await source.look()) == 1
        assert source.pause == consul.BREATH
        second = asyncio.create_task(source.look())
        async with patience("it was asked again"):
            await asked_again.wait()
        change.set()

        assert await second == []


@pytest.mark.parametrize("index", ["16", "0", "", "x", "-1"])
async def test_an_index_that_went_back_begins_anew(index: str) -> None:
    """Else a restart of Consul would be waited for in vain."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        answered(exchange, [], "17" if len(exchange.server.requests) == 1 else index)

    async with asking(script) as (source, agent):
        for _ in range(3):
            await source.look()

    assert [b"index=17" in request.target for request in agent.requests] == [False, True, False]
    assert b"index" not in agent.requests[2].target


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (json_answer([], b"403 Forbidden"), "refuses our token"),
        (json_answer([], b"500 Internal Server Error"), "answers with status 500"),
        (json_answer([], b"302 Found"), "answers with status 302"),
        (json_answer({"a": 1}), "no list of instances"),
        (json_answer(["a"]), "no list of instances"),
        (json_answer([{"Service": 1}]), "no list of instances"),
        (json_answer([instance("a b")]), "no address"),
        (json_answer([instance("a/b")]), "no address"),
        (json_answer([instance("a", 99999)]), "no port"),
        (json_answer([instance("a", Weights={"Passing": "x"})]), "no port or weight"),
        (json_answer("x" * consul.LARGEST), "is larger"),
    ],
)
async def test_what_is_no_answer_says_nothing(answer: Script, why: str) -> None:
    """The servers stay as they are, and the next question is not held back."""
    async with asking(answer) as (source, _):
        with pytest.raises(LookFailed, match=why):
            await source.look()

        assert source.pause == consul.EVERY


async def test_an_agent_that_is_gone_has_said_nothing() -> None:
    """Neither one that refuses nor one that breaks off; the reason names no host."""

    async def broken(exchange: Exchange) -> None:
        await exchange.request()
        exchange.reset()

    async with asking(broken) as (source, _):
        with pytest.raises(LookFailed, match="cannot be asked"):
            await source.look()
    gone = ConsulSource(template("consul+http://127.0.0.1:1/llm"))
    with pytest.raises(LookFailed, match="cannot be asked") as failed:
        await gone.look()
    await gone.aclose()

    assert "127" not in str(failed.value)


async def test_an_agent_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not longer than it may hold a question back."""
    monkeypatch.setattr(consul, "WITHIN", 0.05)
    forever = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.request()
        await forever.wait()

    async with asking(silent) as (source, _):
        with pytest.raises(LookFailed, match="in time"):
            await source.look()


async def test_consul_is_asked_by_tls_on_its_port_for_it(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And must show a certificate of the authority that is named."""
    async with scripted(json_answer([]), tls=authority.server("127.0.0.1")) as agent:
        monkeypatch.setattr(consul, "HTTPS_PORT", agent.address[1])
        place = f"consul+http://127.0.0.1:{agent.address[1]}/llm"
        # In a thread, because it reads the file of the authority.
        trusting = f"{place.replace('http', 'https')};ca={authority.file}"
        known = ConsulSource(await asyncio.to_thread(template, trusting))
        unknown = ConsulSource(template(place))
        try:
            assert await known.look() == []
            with pytest.raises(LookFailed, match="ConnectError"):
                await unknown.look()
        finally:
            await known.aclose()
            await unknown.aclose()
