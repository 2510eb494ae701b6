"""The official `openai` client against `llmproxy serve`."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.support.ports import free_port
from tests.support.proxy import serving
from tests.support.upstream import Exchange, Script, chat_events, scripted

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello"}]
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "llama",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, wörld"},
            "finish_reason": "stop",
        }
    ],
}


async def engine(exchange: Exchange) -> None:
    """Answer as an engine does, streaming or not."""
    request = await exchange.request()
    if request.target == b"/v1/models":
        exchange.json({"object": "list", "data": [{"id": "llama", "object": "model"}]})
    elif request.target != b"/v1/chat/completions":
        exchange.json({"error": {"message": "no such thing"}}, b"404 Not Found")
    elif json.loads(request.body).get("stream"):
        exchange.begin()
        for event in chat_events(["Hel", "lo, ", "wörld"]):
            exchange.chunk(event)
            await asyncio.sleep(0.01)
        exchange.end()
    else:
        exchange.json(COMPLETION)


ROUTED = {"LLMPROXY_MIDDLEWARE": "auth,rate_limit,routing"}  # as a user has it


@asynccontextmanager
async def proxy(script: Script = engine) -> AsyncIterator[str]:
    """Start a proxy; yields the base URL that a client is given."""
    async with (
        scripted(script) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, **ROUTED}) as served,
    ):
        yield f"{served.url}/v1"


@asynccontextmanager
async def asynchronous(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0)
    async with client:
        yield client


def synchronous(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)


async def test_the_asynchronous_client() -> None:
    """A list of models, a whole answer, a stream, and a path that is not there."""
    async with proxy() as base_url, asynchronous(base_url) as client:
        models = [model.id async for model in client.models.list()]
        whole = await client.chat.completions.create(model="llama", messages=HELLO)
        stream = await client.chat.completions.create(model="llama", messages=HELLO, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        with pytest.raises(openai.NotFoundError) as missing:
            await client.files.retrieve("file-1")

    assert models == ["llama"]
    assert whole.choices[0].message.content == "Hello, wörld"
    assert "".join(word or "" for word in words) == "Hello, wörld"
    assert missing.value.body == {"message": "no such thing"}


async def test_the_synchronous_client() -> None:
    """The same in a thread that blocks."""

    def use(base_url: str) -> tuple[str | None, str]:
        with synchronous(base_url) as client:
            whole = client.chat.completions.create(model="llama", messages=HELLO)
            stream = client.chat.completions.create(model="llama", messages=HELLO, stream=True)
            words = [chunk.choices[0].delta.content or "" for chunk in stream]
            return whole.choices[0].message.content, "".join(words)

    async with proxy() as base_url:
        whole, streamed = await asyncio.to_thread(use, base_url)

    assert whole == streamed == "Hello, wörld"


async def test_a_wrong_base_url_is_told_in_the_clients_own_words() -> None:
    """The one mistake that everybody makes: /v1 left out, or written twice."""
    async with proxy() as base_url:
        for wrong in (base_url.removesuffix("/v1"), base_url + "/v1/"):
            async with asynchronous(wrong) as client:
                with pytest.raises(openai.NotFoundError) as told:
                    await client.chat.completions.create(model="llama", messages=HELLO)

    assert isinstance(told.value.body, dict)
    assert told.value.request_id is not None


async def test_an_engine_that_is_down_is_an_error_with_a_code() -> None:
    """And one that the client would retry."""
    async with (
        serving({"LLMPROXY_UPSTREAMS": f"http://127.0.0.1:{free_port()}"}) as served,
        asynchronous(f"{served.url}/v1") as client,
    ):
        with pytest.raises(openai.InternalServerError) as told:
            await client.chat.completions.create(model="llama", messages=HELLO)
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="llama", messages=HELLO, stream=True)

    assert told.value.status_code == 502
    assert told.value.code == "upstream_unreachable"


async def test_a_stream_that_breaks_raises() -> None:
    """The words that came are there; then the client is told, and not left to think it was all."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        for event in chat_events(["Hel", "lo"], done=False):
            exchange.chunk(event)
        await asyncio.sleep(0.1)
        exchange.reset()

    words: list[str | None] = []
    async with proxy(breaks) as base_url, asynchronous(base_url) as client:
        stream = await client.chat.completions.create(model="llama", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as told:
            async for chunk in stream:
                words.append(chunk.choices[0].delta.content)  # noqa: PERF401  # as far as it comes

    assert words == ["Hel", "lo"]
    assert told.value.code == "upstream_error"


async def test_a_client_that_stops_listening_frees_the_engine() -> None:
    """`await stream.close()` in the middle closes the engine's connection."""

    async def endless(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(chat_events(["x"], done=False)[0])
            await asyncio.sleep(0.01)

    async with (
        scripted(endless) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, **ROUTED}) as served,
        asynchronous(f"{served.url}/v1") as client,
    ):
        stream = await client.chat.completions.create(model="llama", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await server.abandoned()

    assert server.open == 0
