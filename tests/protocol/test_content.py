"""What a prompt is made of."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.protocol.content import has_images, has_tools

PICTURE = "data:image/png;base64,AAAA"
TEXT = st.text() | st.sampled_from(
    ['"image_url"', '{"type":"image"}', '"tools":[1]', '\\"images\\":[1]', "\\u0069mage", "tools"]
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXT | PARTS}), max_size=4
)


def user(content: object, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


def escaped(body: bytes, word: bytes) -> list[bytes]:
    """Write one letter of a word as its number, or all of them: the same JSON."""
    assert word in body
    letters = [b"%c" % letter for letter in word]
    numbers = [b"\\u%04x" % letter for letter in word]
    spelled = [
        [*letters[:place], number, *letters[place + 1 :]] for place, number in enumerate(numbers)
    ]
    return [body.replace(word, b"".join(each)) for each in (*spelled, numbers)]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        pytest.param(
            user([{"type": "image_url", "image_url": {"url": PICTURE}}]), b"image_url", id="chat"
        ),
        pytest.param(
            user([{"type": "text", "text": "x"}, {"type": "image", "source": {}}]),
            b"image",
            id="messages",
        ),
        pytest.param(
            user([{"type": "tool_result", "content": [{"type": "image", "source": {}}]}]),
            b"image",
            id="in_the_result_of_a_tool",
        ),
        pytest.param(
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            b"input_image",
            id="responses",
        ),
        pytest.param({"input": [{"type": "input_image"}]}, b"input_image", id="bare_input"),
        pytest.param(user("what is it?", images=["AAAA"]), b"images", id="ollama_chat"),
        pytest.param({"prompt": "what is it?", "images": ["AAAA"]}, b"images", id="ollama"),
        pytest.param(
            {"messages": [*user("x")["messages"] * 3, *user([{"type": "image"}])["messages"]]},
            b"image",
            id="in_the_last_message",
        ),
    ],
)
def test_an_image_is_found_wherever_an_api_has_it(asked: object, word: bytes) -> None:
    """However it is spelled."""
    body = json.dumps(asked).encode()

    assert has_images(body)
    assert all(map(has_images, escaped(body, word)))
    assert not has_tools(body)


@given(MESSAGES, TEXT)
def test_words_in_a_text_are_no_images_and_no_tools(messages: object, system: str) -> None:
    """A prompt about JSON is still only text."""
    asked = {"messages": messages, "system": system, "tools": [], "images": [], "prompt": system}
    for written in (json.dumps(asked), json.dumps(asked, ensure_ascii=False)):
        body = written.encode("utf-8", "surrogatepass")
        assert not has_images(body)
        assert not has_tools(body)


def test_tools_are_those_at_the_top_and_not_none() -> None:
    """An empty list gives the model nothing to call."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}

    assert has_tools(json.dumps({"tools": [tool]}).encode())
    assert all(map(has_tools, escaped(json.dumps({"tools": [tool]}).encode(), b"tools")))
    for nothing in ("[]", "null", '"tools"', '{"a": 1}', "[ ]"):
        assert not has_tools(b'{"tools": %b}' % nothing.encode())
    assert not has_tools(json.dumps({"metadata": {"tools": [tool]}}).encode())


@given(st.binary(max_size=40).map(lambda junk: b'{"tools":"image_url"' + junk))
def test_what_cannot_be_read_has_nothing(body: bytes) -> None:
    """It is for the model server to say what is wrong with it."""
    assert not has_images(body)
    assert not has_tools(body)


@pytest.mark.parametrize(
    "body",
    [
        b'["image_url", "tools"]',
        b'{"messages": ' + b"[" * 100_000 + b'"image"' + b"]" * 100_000 + b"}",
        b'{"tools": ' + b'{"tools":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"messages": [{"content": [[[[[[[{"type": "image"}]]]]]]]}]}',
        b'{"messages": ["image", 5, null, {"type": 5, "images": "image"}]}',
    ],
    ids=["list", "deep_list", "deep_table", "deeper_than_any_api", "odd_items"],
)
def test_odd_bodies_have_nothing(body: bytes) -> None:
    """Nobody can make this crash, or dig for ever."""
    assert not has_images(body)
    assert not has_tools(body)
