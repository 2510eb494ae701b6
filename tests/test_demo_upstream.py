"""The demo upstream speaks OpenAI's API, and says what it is."""

import asyncio
import base64
import json
import struct
from typing import Any

import openai
import pytest

from llmproxy.demo_upstream import MODEL
from llmproxy.demo_upstream.app import app
from llmproxy.demo_upstream.generation import PAUSE
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.server import under_uvicorn

CHAT = "/v1/chat/completions"


async def ask(path: str, body: object, **more: Any) -> Exchange:
    return await drive(app, path=path, body=json.dumps(body).encode(), **more)


def chat(**more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "How are you?"}], **more}


def events(seen: Exchange) -> list[Any]:
    """Return the events of a stream; the last one has to be [DONE]."""
    parts = seen.body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


async def test_it_is_honest() -> None:
    """Nobody takes it for a model."""
    answer = json.loads((await ask(CHAT, chat())).body)

    text = answer["choices"][0]["message"]["content"]
    assert "demo" in answer["model"]
    assert "demo" in text
    assert "no model" in text
    assert text.endswith("How are you?")


async def test_a_stream_is_the_same_text_word_by_word() -> None:
    """One event each, then the reason and the end."""
    whole = json.loads((await ask(CHAT, chat())).body)
    seen = await ask(CHAT, chat(stream=True))

    assert seen.header(b"content-type") == b"text/event-stream"
    chunks = events(seen)
    words = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(words) == whole["choices"][0]["message"]["content"]
    assert len(words) == whole["usage"]["completion_tokens"] + 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_words_come_one_after_the_other() -> None:
    """They are sent when they are there, not collected."""
    seen = Exchange()
    request = asyncio.create_task(ask(CHAT, chat(stream=True), seen=seen))

    await seen.has_chunks(3)

    assert not seen.complete
    await request
    assert seen.complete


async def test_usage_is_told_when_it_is_asked_for() -> None:
    """In an event of its own before the end, and it adds up."""
    seen = await ask(CHAT, chat(stream=True, stream_options={"include_usage": True}))

    *chunks, last = events(seen)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == len(chunks) - 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_cuts_the_answer(name: str, stream: bool) -> None:
    """And the reason says so."""
    seen = await ask(CHAT, chat(stream=stream, **{name: 4}))

    if stream:
        assert events(seen)[-1]["choices"][0]["finish_reason"] == "length"
        assert len(events(seen)) == 6
    else:
        answer = json.loads(seen.body)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["message"]["content"] == "This is the demo"
        assert answer["usage"]["completion_tokens"] == 4


async def test_the_last_question_is_repeated() -> None:
    """Parts of a message are joined, and other roles are not questions."""
    parts = [
        {"type": "text", "text": "old"},
        {"type": "image_url"},
        {"type": "text", "text": "new"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "mine"}]

    answer = json.loads((await ask(CHAT, {"model": MODEL, "messages": messages})).body)

    assert answer["choices"][0]["message"]["content"].endswith(": old new")


async def test_completions_have_their_own_shape() -> None:
    """`text` instead of messages, streamed or not."""
    whole = json.loads((await ask("/v1/completions", {"model": MODEL, "prompt": "Hello"})).body)
    seen = await ask("/v1/completions", {"model": MODEL, "prompt": ["Hello"], "stream": True})

    text = "".join(event["choices"][0]["text"] for event in events(seen))
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == text
    assert text.endswith(": Hello")


async def test_embeddings_are_always_the_same() -> None:
    """Of length one, one for each input, different for different texts."""
    asked = {"model": MODEL, "input": ["a", "b", "a"], "dimensions": 8}

    answer = json.loads((await ask("/v1/embeddings", asked)).body)
    packed = json.loads((await ask("/v1/embeddings", asked | {"encoding_format": "base64"})).body)

    first, second, third = (item["embedding"] for item in answer["data"])
    assert first == third != second
    assert sum(number * number for number in first) == pytest.approx(1)
    unpacked = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(first)


async def test_models_and_health_are_there() -> None:
    """What a proxy asks first."""
    models = json.loads((await drive(app, method="GET", path="/v1/models")).body)
    model = json.loads((await drive(app, method="GET", path=f"/v1/models/{MODEL}")).body)

    assert models["data"] == [model]
    assert model["id"] == MODEL
    assert (await drive(app, method="GET", path="/health")).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        pytest.param(CHAT, b"{", 400, "invalid_json", id="no_json"),
        pytest.param(CHAT, b"[]", 400, "invalid_request", id="no_object"),
        pytest.param(CHAT, b'{"model":"x"}', 404, "model_not_found", id="other_model"),
        pytest.param(CHAT, chat(messages=[]), 400, "invalid_request", id="no_messages"),
        pytest.param(CHAT, chat(max_tokens=0), 400, "invalid_request", id="no_tokens"),
        pytest.param(CHAT, chat(max_tokens="5"), 400, "invalid_request", id="text_for_a_number"),
        pytest.param(CHAT, chat(n=2), 400, "invalid_request", id="two_choices"),
        pytest.param("/v1/completions", {"model": MODEL, "prompt": [1]}, 400, None, id="tokens"),
        pytest.param("/v1/embeddings", {"model": MODEL, "input": 5}, 400, None, id="no_input"),
        pytest.param(
            "/v1/embeddings", {"model": MODEL, "input": "a", "dimensions": 0}, 400, None, id="flat"
        ),
        pytest.param("/v1/images", chat(), 404, "not_found", id="unknown_path"),
        pytest.param("/v1/models", chat(), 405, "method_not_allowed", id="wrong_method"),
    ],
)
async def test_errors_have_openais_shape(
    path: str, body: object, status: int, code: str | None
) -> None:
    """Clients know what to do with them."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    seen = await drive(app, path=path, body=raw)

    error = json.loads(seen.body)["error"]
    assert seen.status == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code


async def test_it_stops_when_the_client_leaves() -> None:
    """Words for nobody are not made."""
    seen = await ask(CHAT, chat(stream=True), leave_after=2)
    await asyncio.sleep(5 * PAUSE)

    assert seen.raised is None
    assert not seen.complete
    assert seen.after_leaving <= 1


async def test_a_cancellation_stops_it_too() -> None:
    """A server that stops cancels what runs."""
    seen = Exchange()
    request = asyncio.create_task(ask(CHAT, chat(stream=True), seen=seen))

    await cancel_in_flight(request, seen.started)

    assert request.cancelled()


async def test_the_official_client_is_content() -> None:
    """Streaming, not streaming, and with vectors that it asks for in base64."""
    async with under_uvicorn(app) as served:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        messages: Any = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(model=MODEL, messages=messages)
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        vectors = await client.embeddings.create(model=MODEL, input="Hello")
        models = [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-4o", messages=messages)
        await client.close()

    assert "".join(words) == answer.choices[0].message.content
    assert len(vectors.data[0].embedding) == 64
    assert models == [MODEL]
