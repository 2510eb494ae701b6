"""What a model server answers is what the caller gets."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.engines.asking import HELLO, SHORT, chat_body, openai_client
from tests.engines.engine import Engine
from tests.engines.servers import Server

PROMPT = 'Mañana, "日本" \\ 🦙\n\tfin'
SEVERAL = 8  # callers at once

# New with every answer, also of the same engine to the same question.
PASSING = re.compile(rb'"(id|created)": ?("[^"]*"|\d+)')


def complete(client: openai.OpenAI, engine: Engine, prompt: str, *, temperature: float = 0) -> str:
    answer = client.completions.create(
        model=engine.chat_model,
        prompt=prompt,
        max_tokens=SHORT,
        temperature=temperature,
        seed=7,
    )
    return answer.choices[0].text


def test_the_models_are_listed(client: openai.OpenAI, engine: Engine) -> None:
    """A caller can find out what there is to call."""
    names = {model.id for model in client.models.list()}

    assert names == {engine.chat_model, engine.embedding_model}


def test_a_chat_is_answered(client: openai.OpenAI, engine: Engine) -> None:
    """Text, the reason for its end and the count of its tokens all arrive."""
    answer = client.chat.completions.create(
        model=engine.chat_model, messages=HELLO, max_tokens=SHORT, temperature=0
    )

    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == SHORT
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + SHORT


def test_a_completion_is_answered(client: openai.OpenAI, engine: Engine) -> None:
    """The older way of asking works as well."""
    answer = client.completions.create(
        model=engine.chat_model, prompt=PROMPT, max_tokens=SHORT, temperature=0
    )

    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == SHORT


def test_a_prompt_arrives_letter_for_letter(client: openai.OpenAI, engine: Engine) -> None:
    """What is echoed is what was sent, escapes, accents and emoji included."""
    answer = client.completions.create(
        model=engine.chat_model, prompt=PROMPT, max_tokens=1, temperature=0, echo=True
    )

    assert answer.choices[0].text.startswith(PROMPT)


def test_a_stop_word_ends_the_answer(client: openai.OpenAI, engine: Engine) -> None:
    """A parameter that we do not know of reaches the engine and has its effect."""
    whole = complete(client, engine, PROMPT)
    word = whole.split()[SHORT // 2]

    answer = client.completions.create(
        model=engine.chat_model, prompt=PROMPT, max_tokens=SHORT, temperature=0, stop=[word]
    )

    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == whole.partition(word)[0]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_the_text_is_the_same_either_way(
    direct: Server, proxied: Server, engine: Engine, temperature: float
) -> None:
    """With its seed given, a model says through the proxy what it says without."""
    with openai_client(direct) as one, openai_client(proxied) as other:
        without = complete(one, engine, PROMPT, temperature=temperature)
        through = complete(other, engine, PROMPT, temperature=temperature)

    assert through == without


def test_a_streamed_chat_says_what_the_whole_one_says(
    client: openai.OpenAI, engine: Engine
) -> None:
    """The pieces make up the answer, and the last one tells why it ended."""
    whole = client.chat.completions.create(
        model=engine.chat_model, messages=HELLO, max_tokens=SHORT, temperature=0
    )
    with client.chat.completions.create(
        model=engine.chat_model, messages=HELLO, max_tokens=SHORT, temperature=0, stream=True
    ) as stream:
        pieces = list(stream)

    said = [piece.choices[0].delta.content for piece in pieces if piece.choices]
    assert "".join(text or "" for text in said) == whole.choices[0].message.content
    assert len([text for text in said if text]) > 1
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"


def test_a_streamed_completion_says_what_the_whole_one_says(
    client: openai.OpenAI, engine: Engine
) -> None:
    """The same for the older way of asking."""
    whole = complete(client, engine, PROMPT)
    with client.completions.create(
        model=engine.chat_model, prompt=PROMPT, max_tokens=SHORT, temperature=0, stream=True
    ) as stream:
        pieces = list(stream)

    assert "".join(piece.choices[0].text for piece in pieces) == whole
    assert pieces[-1].choices[0].finish_reason == "length"


def test_a_stream_is_the_engines_own_byte_for_byte(
    direct: Server, proxied: Server, engine: Engine, http: httpx.Client
) -> None:
    """Nothing in a stream is parsed and written anew."""
    body = chat_body(engine, stream=True)

    without = http.post(f"{direct.url}/v1/chat/completions", json=body)
    through = http.post(f"{proxied.url}/v1/chat/completions", json=body)

    assert through.status_code == without.status_code == 200
    assert through.headers["content-type"] == without.headers["content-type"]
    assert PASSING.sub(b"", through.content) == PASSING.sub(b"", without.content)
    assert through.content.rstrip().endswith(b"data: [DONE]")


def test_embeddings_are_the_same_either_way(
    direct: Server, proxied: Server, engine: Engine
) -> None:
    """Vectors arrive whole and in their order."""
    texts = ["a quiet owl", "a loud train", "die Brücke über den Fluß"]
    with openai_client(direct) as one, openai_client(proxied) as other:
        without = one.embeddings.create(model=engine.embedding_model, input=texts)
        through = other.embeddings.create(model=engine.embedding_model, input=texts)

    assert [vector.index for vector in through.data] == [0, 1, 2]
    assert [vector.embedding for vector in through.data] == [
        vector.embedding for vector in without.data
    ]
    assert len({tuple(vector.embedding) for vector in through.data}) == len(texts)
    assert through.usage.prompt_tokens > 0


def test_each_caller_gets_the_answer_to_its_own_question(
    direct: Server, proxied: Server, engine: Engine
) -> None:
    """Answers do not change hands when many ask at once."""
    prompts = [f"Caller {number} wants to know" for number in range(SEVERAL)]
    with openai_client(direct) as client:
        expected = [complete(client, engine, prompt) for prompt in prompts]

    with openai_client(proxied) as client, ThreadPoolExecutor(SEVERAL) as callers:
        answers = list(callers.map(lambda prompt: complete(client, engine, prompt), prompts))

    assert len(set(expected)) == SEVERAL
    assert answers == expected
