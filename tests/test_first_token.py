"""What counts as the first token of a stream."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.first_token import says_something


def event(value: object, kind: str = "") -> bytes:
    """Return one event."""
    return (f"event: {kind}\n" if kind else "").encode() + b"data: %b\n\n" % (
        json.dumps(value).encode()
    )


def chat(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return what an event of a chat says."""
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["choices", "delta", "content", "type", "finish_reason", "x"])
    return st.lists(values) | st.dictionaries(names, values)


QUIET = [
    event({"error": None, **chat({"role": "assistant", "content": ""})}),
    b": ping\n\n",
    event(chat({"role": "assistant", "content": ""})),
    event(chat({"role": "assistant", "content": None, "tool_calls": []})),
    event({"id": "x", "choices": [], "prompt_filter_results": []}),
    event({"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}),
    event({"id": "x", "choices": [{"index": 0, "text": "", "finish_reason": None}]}),
    event({"type": "message_start", "message": {"content": []}}, "message_start"),
    event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}),
    event({"type": "ping"}, "ping"),
    event({"type": "response.created", "response": {"instructions": "Be brief"}}),
    event({"type": "response.output_item.added", "item": {"content": []}}),
]
SAYING = [
    event(chat({"content": "a"})),
    event(chat({"reasoning_content": "a"})),
    event(chat({"reasoning": "a"})),
    event(chat({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]})),
    event(chat({}, "stop")),
    event({"id": "x", "choices": [{"index": 0, "text": "a", "finish_reason": None}]}),
    event({"type": "content_block_delta", "delta": {"type": "input_json_delta"}}),
    event({"type": "response.output_text.delta", "delta": "a"}),
    event({"error": {"message": "x"}}),
    event({"something": "else"}),
    event([1]),
    b"data: [DONE]\n\n",
    b"data: {nonsense\n\n",
]


@pytest.mark.parametrize("quiet", QUIET)
def test_preliminaries_say_nothing(quiet: bytes) -> None:
    """With whatever line ends."""
    assert not says_something(quiet)
    assert not says_something(quiet.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("saying", SAYING)
def test_everything_else_does(saying: bytes) -> None:
    """With whatever line ends."""
    assert says_something(saying)
    assert says_something(saying.replace(b"\n", b"\r\n"))


@given(st.recursive(st.none() | st.integers() | st.text(), _objects))
def test_nothing_breaks_it(said: object) -> None:
    """An engine may say anything."""
    assert says_something(event(said)) in (True, False)
