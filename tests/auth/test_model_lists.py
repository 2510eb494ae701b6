"""A list of models, as somebody may see it who may not use all of them."""

import json

import pytest

from llmproxy.auth.model_lists import filtered
from llmproxy.records import Principal

BOUND = Principal("i", "n", models=("llama-*", "phi"))


def test_only_what_may_be_used_is_shown() -> None:
    """In its order, with everything else that is said of it."""
    models = [{"id": name, "owned_by": "us"} for name in ("qwen", "phi", "llama-2", "llama-1")]

    told = json.loads(filtered(json.dumps({"object": "list", "data": models}).encode(), BOUND))

    assert told == {"object": "list", "data": models[1:]}


def test_the_list_of_ollama_is_one_too() -> None:
    """It has other names for the same."""
    body = b'{"models":[{"name":"qwen","model":"qwen"},{"name":"phi","model":"phi"},{"size":1}]}'

    assert json.loads(filtered(body, BOUND)) == {"models": [{"name": "phi", "model": "phi"}]}


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"data":{}}', b'{"error":"x"}'])
def test_what_is_no_list_shows_nothing(body: bytes) -> None:
    """It could have anything in it."""
    assert json.loads(filtered(body, BOUND)) == {"object": "list", "data": []}
