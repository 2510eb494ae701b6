"""The class of a request in its body."""

import orjson
import pytest

from llmproxy.protocol.priority_field import with_priority


@pytest.mark.parametrize(("preset", "number"), [("vllm", -3), ("sglang", 3), ("http", -3)])
def test_it_is_put_in_as_the_engine_reads_it(preset: str, number: int) -> None:
    """vLLM takes the lowest first."""
    body = b' {"model": "m", "seed": 1e2}'

    changed = with_priority(body, 3, preset)
    assert changed == b' {"priority":%d,"model": "m", "seed": 1e2}' % number


def test_an_empty_object_stays_json() -> None:
    """Nobody asks so, and it is no reason to break."""
    assert orjson.loads(with_priority(b"{ }", 0, "vllm")) == {"priority": 0}


def test_what_the_caller_wrote_is_replaced() -> None:
    """Else everybody would be first."""
    changed = with_priority(b'{"model":"m","priority":-99}', 1, "vllm")
    assert orjson.loads(changed) == {"model": "m", "priority": -1}


def test_the_word_inside_a_text_is_somebody_elses() -> None:
    """The bytes stay as they are."""
    body = b'{"model":"m","metadata":{"priority":"high"}}'
    assert with_priority(body, 1, "vllm") == b'{"priority":-1,' + body[1:]
