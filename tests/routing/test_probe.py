"""How an upstream is asked how it is."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmproxy.records import Upstream
from llmproxy.routing.model_list import documents_in
from llmproxy.routing.probe import Probe, probe
from llmproxy.transport.connect import transport_for
from tests.support.tls import Authority
from tests.support.upstream import Exchange, Script, scripted

WITHIN = 2.0
MODELS = {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}


Pages = Mapping[bytes, tuple[bytes, object]]


def serving(pages: Pages) -> Script:
    """Answer each path with its own status and JSON, every other with 404."""

    async def script(exchange: Exchange) -> None:
        request = await exchange.request()
        status, value = pages.get(request.target, (b"404 Not Found", {"detail": "Not Found"}))
        exchange.json(value, status)

    return script


async def look(upstream: Upstream, within: float = WITHIN) -> Probe:
    transport = transport_for(upstream)
    try:
        return await probe(transport, upstream, within=within)
    finally:
        await transport.aclose()


async def look_at(pages: Pages, **about: Any) -> Probe:
    async with scripted(serving(pages)) as server:
        return await look(replace(server.upstream, **about))


async def test_health_and_models_make_a_healthy_upstream() -> None:
    """Both are asked, in this order, with the upstream's own credentials."""
    pages: Pages = {b"/health": (b"200 OK", {}), b"/v1/models": (b"200 OK", MODELS)}
    async with scripted(serving(pages)) as server:
        found = await look(replace(server.upstream, credentials=((b"authorization", b"Bearer k"),)))
        asked = list(server.requests)

    assert (found.ok, found.detail, found.models) == (True, "ok", ("a", "b"))
    assert 0 < found.seconds < WITHIN
    assert [request.target for request in asked] == [b"/health", b"/v1/models"]
    assert {request.header(b"authorization") for request in asked} == {b"Bearer k"}
    assert {request.header(b"host") for request in asked} == {server.upstream.authority.encode()}


async def test_health_can_be_asked_for_alone() -> None:
    """The models are asked for all the same where nothing else tells how it is."""
    pages: Pages = {b"/health": (b"200 OK", {}), b"/v1/models": (b"200 OK", MODELS)}
    async with scripted(serving(pages)) as server:
        transport = transport_for(server.upstream)
        found = await probe(transport, server.upstream, within=WITHIN, listing=False)
        bare = replace(server.upstream, health="/nothing")
        listed = await probe(transport, bare, within=WITHIN, listing=False)
        await transport.aclose()
        asked = [request.target for request in server.requests]

    assert (found.ok, found.models) == (True, None)
    assert (listed.ok, listed.models) == (True, ("a", "b"))
    assert asked == [b"/health", b"/nothing", b"/v1/models"]


async def test_health_lies_below_the_root() -> None:
    """A prefix stands before native paths and models alike."""
    pages: Pages = {b"/team/api/version": (b"200 OK", {}), b"/team/v1/models": (b"200 OK", MODELS)}

    found = await look_at(pages, root="/team", api="/team/v1", health="/api/version")

    assert found.ok


async def test_models_alone_will_do_behind_a_plain_url() -> None:
    """A server without a /health may be well all the same."""
    found = await look_at({b"/v1/models": (b"200 OK", MODELS)})

    assert (found.ok, found.models) == (True, ("a", "b"))


async def test_health_alone_will_do() -> None:
    """An engine whose health is good is up, although it lists no models."""
    found = await look_at({b"/health": (b"200 OK", {})})

    assert (found.ok, found.models) == (True, None)


async def test_a_preset_has_to_have_its_health_path() -> None:
    """A 404 there says that something else stands behind the address."""
    found = await look_at({b"/v1/models": (b"200 OK", MODELS)}, preset="vllm")

    assert (found.ok, found.detail) == (False, "answers with status 404")


async def test_a_service_without_a_list_of_models_only_has_to_answer() -> None:
    """There is nothing else to ask it for."""
    about = {"health": "", "lists_models": False, "preset": "bedrock"}

    assert (await look_at({}, **about)).ok
    assert not (await look_at({b"/v1/models": (b"503 Sorry", {})}, **about)).ok


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (b"401 Unauthorized", "refuses our key (status 401)"),
        (b"403 Forbidden", "refuses our key (status 403)"),
    ],
)
async def test_a_refused_key_is_told(status: bytes, detail: str) -> None:
    """Health may be open to all while models are not."""
    pages: Pages = {b"/health": (b"200 OK", {}), b"/v1/models": (status, {})}

    found = await look_at(pages)

    assert (found.ok, found.detail) == (False, detail)


async def test_an_engine_that_is_not_ready_is_down() -> None:
    """vLLM and llama.cpp answer 503 while they load."""
    found = await look_at({b"/health": (b"503 Loading", {}), b"/v1/models": (b"200 OK", MODELS)})

    assert (found.ok, found.detail) == (False, "answers with status 503")


async def test_a_page_for_people_is_no_list_of_models() -> None:
    """A web server answers 200 to anything."""
    found = await look_at({b"/v1/models": (b"200 OK", "<html>")}, health="")

    assert (found.ok, found.detail) == (False, "its list of models is not one")


async def test_nobody_there() -> None:
    """The cause is told without the address."""
    async with scripted(serving({})) as server:
        upstream = server.upstream

    found = await look(upstream)

    assert (found.ok, found.detail, found.models) == (False, "connection refused", None)


async def test_a_name_that_does_not_exist() -> None:
    """`.invalid` is promised never to."""
    found = await look(Upstream("a", "http", "nowhere.invalid", 80))

    assert not found.ok
    assert "nowhere" not in found.detail


async def test_a_certificate_that_is_not_trusted(authority: Authority) -> None:
    """The operator learns why."""
    async with scripted(serving({}), tls=authority.server("127.0.0.1")) as server:
        found = await look(server.upstream)

    assert not found.ok
    assert found.detail.startswith("its certificate is not trusted: ")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"])
async def test_silence_ends_in_time(said: bytes) -> None:
    """Before the head of an answer and in the middle of one."""
    forever = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(said)
        await forever.wait()

    async with scripted(script) as server:
        found = await look(server.upstream, within=0.2)

    assert (found.ok, found.detail) == (False, "no answer within 0.2 s")
    assert found.seconds < 5


async def test_a_drip_is_no_answer() -> None:
    """The time is for all of it, not for each byte."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while True:
            exchange.chunk(b" ")
            await asyncio.sleep(0.02)

    async with scripted(script) as server:
        found = await look(server.upstream, within=0.2)

    assert (found.ok, found.detail) == (False, "no answer within 0.2 s")


async def test_an_endless_list_is_not_read_to_its_end() -> None:
    """A probe holds a bounded amount of memory."""

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while True:
            exchange.chunk(b" " * 65536)
            await asyncio.sleep(0)

    async with scripted(script) as server:
        found = await look(replace(server.upstream, health=""), within=20)

    assert (found.ok, found.detail) == (False, "The answer is too long for what was asked")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data": [{"id": "a"}, {"id": "b"}]}', ("a", "b")),
        (b'{"models": [{"name": "a:latest"}]}', ("a:latest",)),
        (b'{"data": []}', ()),
        (b'{"data": [{"id": 5}, 5, null, {"id": "a"}]}', ("a",)),
        (b'{"data": {}}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_lists_of_models_come_in_two_shapes(body: bytes, names: tuple[str, ...] | None) -> None:
    """OpenAI's, and the native one of Ollama and Cohere."""
    found = documents_in(body)

    assert (tuple(found) if found is not None else None) == names
