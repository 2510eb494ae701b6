"""What an engine refuses is refused by the engine, in its own words."""

import httpx
import openai
import pytest

from tests.engines.asking import CHAT, ask_something_short, chat_body
from tests.engines.engine import Engine
from tests.engines.servers import Server


def too_long_for(engine: Engine) -> str:
    """Return a prompt that does not fit: it has more words than the context has tokens."""
    return "fox " * (engine.context_length + 1)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        pytest.param("/v1/nothing-here", {}, id="unknown_path"),
        pytest.param(CHAT, {"temperature": "warm"}, id="value_of_a_wrong_type"),
        pytest.param(CHAT, {"top_p": 7}, id="value_out_of_range"),
        pytest.param(CHAT, {"messages": "hello"}, id="messages_that_are_none"),
        pytest.param(CHAT, {"messages": None}, id="no_messages"),
    ],
)
def test_a_refusal_comes_through_unchanged(
    direct: Server,
    proxied: Server,
    engine: Engine,
    http: httpx.Client,
    path: str,
    wrong: dict[str, object],
) -> None:
    """Status, type and body are the engine's, and the next request is answered."""
    body = chat_body(engine, **wrong)

    without = http.post(direct.url + path, json=body)
    through = http.post(proxied.url + path, json=body)

    assert without.is_error
    assert through.status_code == without.status_code
    assert through.headers["content-type"] == without.headers["content-type"]
    assert through.content == without.content
    assert ask_something_short(proxied, engine)


def test_a_prompt_that_is_too_long_is_refused_by_name(
    client: openai.OpenAI, engine: Engine
) -> None:
    """The official client can tell this error from others, as callers that shorten need it."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=engine.chat_model,
            messages=[{"role": "user", "content": too_long_for(engine)}],
            max_tokens=1,
        )

    assert refused.value.code == "context_length_exceeded"


def test_the_refusal_of_a_long_prompt_comes_through_unchanged(
    direct: Server, proxied: Server, engine: Engine, http: httpx.Client
) -> None:
    """A body of many kilobytes is refused in the engine's words as well."""
    body = chat_body(engine, messages=[{"role": "user", "content": too_long_for(engine)}])

    without = http.post(direct.url + CHAT, json=body)
    through = http.post(proxied.url + CHAT, json=body)

    assert through.status_code == without.status_code == 400
    assert through.json() == without.json()
    assert ask_something_short(proxied, engine)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b'{"model": "tiny", "messages": [', id="cut_off"),
        pytest.param(b"model=tiny", id="a_form"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_broken_json_is_a_clear_refusal(
    proxied: Server, engine: Engine, http: httpx.Client, broken: bytes
) -> None:
    """We answer before the engine can: some, llama-cpp-python among them, say 500 to it."""
    answer = http.post(
        proxied.url + CHAT, content=broken, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert ask_something_short(proxied, engine)
