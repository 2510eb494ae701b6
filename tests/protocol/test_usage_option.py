"""Asking an engine for its count, in a body that is otherwise left as it is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.protocol import usage_option
from llmproxy.protocol.inference import LARGE, read_inference
from llmproxy.protocol.usage_option import Refusals, refuses

ASKED = '"stream_options":{"include_usage":true}'


def with_usage(body: bytes) -> bytes | None:
    pieces = usage_option.with_usage(body, read_inference(body))
    return b"".join(pieces) if pieces is not None else None


def test_the_option_is_put_in_at_the_front() -> None:
    """Everything behind it stays as the caller wrote it."""
    body = b'\r\n { "model" : "a" , "stream":true,"temperature":1.0 } '

    assert with_usage(body) == (
        b'\r\n {"stream_options":{"include_usage":true}, "model" : "a" ,'
        b' "stream":true,"temperature":1.0 } '
    )


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        pytest.param('"stream_options":null', ASKED, id="null"),
        pytest.param('"stream_options" \n:\tnull', ASKED, id="null_with_blanks"),
        pytest.param('"stream_options":{}', ASKED, id="empty"),
        pytest.param(
            '"stream_options" : {  }', '"stream_options" : {"include_usage":true  }', id="blank"
        ),
        pytest.param('"stream_options":{"include_usage":false}', ASKED, id="false"),
        pytest.param('"stream_options":{"include_usage":null}', ASKED, id="said_null"),
        pytest.param(
            '"stream_options":{"x":{"include_usage":false,"y":"}"}}',
            '"stream_options":{"include_usage":true,"x":{"include_usage":false,"y":"}"}}',
            id="deeper_inside",
        ),
        pytest.param(
            '"stream_options":{"x":{"include_usage":false,"y":"}"},"include_usage" : false }',
            '"stream_options":{"x":{"include_usage":false,"y":"}"},"include_usage" : true }',
            id="behind_a_deeper_one",
        ),
        pytest.param(
            '"stream_options":{"continuous_usage_stats":true}',
            '"stream_options":{"include_usage":true,"continuous_usage_stats":true}',
            id="other_options",
        ),
    ],
)
@pytest.mark.parametrize(
    "around",
    [
        '{%s,"stream":true}',
        '{"stream":true,%s}',
        '{"stream":true,"tools":[{"stream_options":null}],%s}',
        '{"stream":true,"tools":[{"stream_options":{"include_usage":false}}], %s }',
        '{%s,"stream":true,"tools":[{"stream_options":{"include_usage":false}}]}',
        '{"stream":true,"messages":"\\"stream_options\\":{\\"include_usage\\":false}",%s}',
        '{"stream":true,"messages":"{{[","x":"\\\\",%s}',
    ],
)
@pytest.mark.parametrize("size", [0, LARGE + 1], ids=["small", "large"])
def test_what_is_there_is_completed(said: str, asked: str, around: str, size: int) -> None:
    """One literal is replaced or one member put in, at the top and nowhere else."""
    body = " " * size + around.replace("%s", said)

    got = with_usage(body.encode())

    assert got is not None
    assert got.decode() == " " * size + around.replace("%s", asked)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"stream":true,"stream_options":[]}', id="list"),
        pytest.param(b'{"stream":true,"stream_options":"x"}', id="text"),
        pytest.param(b'{"stream":true,"stream_options":{"include_usage":"no"}}', id="odd_value"),
        pytest.param(b'{"stream":true,"stream_options":{"include_usage":0}}', id="number"),
        pytest.param(b'{"stream":true,"stream\\u005foptions":null}', id="escaped"),
        pytest.param(
            b'{"stream":true,"stream_options":{"include\\u005fusage":false}}', id="escaped_inside"
        ),
    ],
)
def test_what_cannot_be_done_safely_is_not_done(body: bytes) -> None:
    """The engine is the judge of an odd option; ours would hide it, or be hidden by it."""
    assert with_usage(body) is None


OPTIONS = st.sampled_from(
    [
        *("null", "{}", "{ }", '{"include_usage":false}', '{"include_usage":null}', "7"),
        *('{"x":"}"}', '{"x":{"include_usage":false}}', '{"include_usage" : false , "y":1}'),
    ]
)
NAMES = st.sampled_from(["stream_options", "include_usage", "stream_option", "{", "é\\u00e9", "x"])
VALUES = st.recursive(
    OPTIONS | st.sampled_from(["1", '"stream_options"', '"\\"stream_options\\":null"', "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]")
        | st.dictionaries(NAMES, inner, max_size=3).map(
            lambda each: "{" + ",".join(f'"{key}":{value}' for key, value in each.items()) + "}"
        )
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4, unique_by=lambda each: each[0]))
def test_nothing_else_is_changed(members: list[tuple[str, str]]) -> None:
    """Read as JSON, the two bodies differ in this one option."""
    members = [("stream", "true"), *members]
    body = "{" + ", ".join(f'"{key}" : {value}' for key, value in members) + "}"
    before: dict[str, Any] = json.loads(body)

    got = with_usage(body.encode())

    options = before.get("stream_options")
    if got is None:
        odd = options.get("include_usage") if isinstance(options, dict) else options
        assert odd not in (None, False) or body.count('"stream_options"') > 4
        return
    after = json.loads(got)
    assert read_inference(got).include_usage is True
    assert after.pop("stream_options") == {**(options or {}), "include_usage": True}
    before.pop("stream_options", None)
    assert after == before


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        pytest.param(400, b'{"message":"Unknown field: stream_options"}', True, id="named"),
        pytest.param(
            422,
            b'{"detail":[{"type":"extra_forbidden","msg":"Extra inputs are not permitted"}]}',
            True,
            id="extra",
        ),
        pytest.param(400, b"Unrecognized request argument supplied", True, id="unrecognized"),
        pytest.param(400, b'{"message":"the prompt is too long"}', False, id="something_else"),
        pytest.param(500, b"stream_options", False, id="a_failure"),
        pytest.param(404, b"stream_options", False, id="nothing_there"),
    ],
)
def test_a_refusal_of_the_option_is_recognised(status: int, body: bytes, told: bool) -> None:
    """By its status and by what it speaks of."""
    assert refuses(status, body) is told


def test_a_refusal_is_remembered_for_a_while() -> None:
    """An engine may be replaced by a newer one."""
    refusals = Refusals(forget_after=10)
    refusals.add("m", 100.0)

    assert refusals.include("m", 109.0)
    assert not refusals.include("n", 109.0)
    assert not refusals.include("m", 110.0)
    assert not refusals.include(None, 100.0)


def test_the_memory_for_refusals_is_bounded() -> None:
    """The oldest goes first."""
    refusals = Refusals()
    for number in range(300):
        refusals.add(f"m{number}", 0.0)

    assert sum(refusals.include(f"m{number}", 1.0) for number in range(300)) == 256
    assert refusals.include("m299", 1.0)
