"""Several upstreams: one after the other, and only those that could answer."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from llmproxy.records import Upstream
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import ScriptedServer, json_answer, scripted

ECHO = json_answer({"ok": True})


@asynccontextmanager
async def fleet(*names: str) -> AsyncIterator[dict[str, ScriptedServer]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(scripted(ECHO)) for name in names}


def named(engine: ScriptedServer, name: str, models: tuple[str, ...] = ()) -> Upstream:
    return replace(engine.upstream, name=name, models=models)


async def test_requests_go_round() -> None:
    """Each in turn; the answer says which it was."""
    async with fleet("a", "b", "c") as engines:
        upstreams = [named(engine, name) for name, engine in engines.items()]
        async with proxied(*upstreams, middleware="") as proxy:
            answers = [await proxy.ask(request_bytes()) for _ in range(6)]

    turns = [answer.header(b"x-llmproxy-upstream") for answer in answers]
    assert turns == [b"a", b"b", b"c", b"a", b"b", b"c"]


async def test_a_server_that_names_its_models_gets_no_others() -> None:
    """`models=` is respected; the turn passes on."""
    async with fleet("small", "large") as engines:
        upstreams = [
            named(engines["small"], "small", ("phi", "tiny")),
            named(engines["large"], "large", ("llama",)),
        ]
        async with proxied(*upstreams, middleware="") as proxy:
            asked = [b"llama", b"llama", b"phi", b"llama", b"tiny"]
            answers = [
                await proxy.ask(request_bytes(body=b'{"model":"%b"}' % model)) for model in asked
            ]

    turns = [answer.header(b"x-llmproxy-upstream") for answer in answers]
    assert turns == [b"large", b"large", b"small", b"large", b"small"]


async def test_a_server_that_names_none_takes_all() -> None:
    """Nothing was said about its models, so it is asked."""
    async with fleet("named", "open") as engines:
        upstreams = [named(engines["named"], "named", ("phi",)), named(engines["open"], "open")]
        async with proxied(*upstreams, middleware="") as proxy:
            answer = await proxy.ask(request_bytes(body=b'{"model":"other"}'))

    assert answer.header(b"x-llmproxy-upstream") == b"open"


async def test_a_model_that_nobody_has_is_answered_by_us() -> None:
    """No engine is touched."""
    async with (
        fleet("a") as engines,
        proxied(named(engines["a"], "a", ("phi",)), middleware="") as proxy,
    ):
        answer = await proxy.ask(request_bytes(body=b'{"model":"other"}'))

    assert answer.status == 503
    assert b'"code":"no_healthy_upstream"' in answer.body
    assert engines["a"].accepted == 0


async def test_the_models_of_a_form_count_too() -> None:
    """Speech goes to the server that has the model for it."""
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
    request = request_bytes(
        b"/v1/audio/transcriptions",
        headers=[(b"content-type", b"multipart/form-data; boundary=b")],
        body=form,
    )
    async with fleet("text", "speech") as engines:
        upstreams = [
            named(engines["text"], "text", ("llama",)),
            named(engines["speech"], "speech", ("whisper-1",)),
        ]
        async with proxied(*upstreams, middleware="") as proxy:
            answers = [await proxy.ask(request) for _ in range(2)]

    assert [answer.header(b"x-llmproxy-upstream") for answer in answers] == [b"speech", b"speech"]
    assert engines["text"].accepted == 0
