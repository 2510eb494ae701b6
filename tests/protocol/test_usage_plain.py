"""The short way to the usage of a whole answer: it says the same as the long one, or nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import codec
from llmproxy.protocol.usage_plain import plain_usage
from llmproxy.protocol.usage_report import MOST, Report
from llmproxy.records import Usage

COUNTS = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
FORGED = '","usage":{"prompt_tokens":1,"completion_tokens":1}}'


def answer(usage: object, **more: Any) -> bytes:
    return json.dumps({"id": "1", "choices": [{"index": 0}], "usage": usage, **more}).encode()


def reported(body: bytes) -> Usage | None:
    """Return what the long way makes of it."""
    report = Report()
    report.take(codec.loads(body))
    if report.prompt is None or report.completion is None:
        return None
    return report.usage(report.prompt, report.completion, estimated=False)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(COUNTS, Usage(30, 5), id="llama.cpp"),
        pytest.param({**COUNTS, "prompt_tokens_details": None}, Usage(30, 5), id="vllm"),
        pytest.param(
            {**COUNTS, "prompt_tokens_details": {"cached_tokens": 16}, "reasoning_tokens": 2},
            Usage(30, 5, cached=16, reasoning=2),
            id="sglang",
        ),
        pytest.param(
            {
                **COUNTS,
                "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
            },
            Usage(30, 5, cached=16, reasoning=2),
            id="openai",
        ),
        pytest.param(
            {
                **COUNTS,
                "prompt_tokens_details": {"cached_tokens": 31},
                "completion_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(30, 5, cached=30, reasoning=5),
            id="parts_beyond_the_whole",
        ),
    ],
)
def test_what_nearly_all_of_them_say_is_read(usage: object, expected: Usage) -> None:
    """Wherever it stands among the other members."""
    assert plain_usage(answer(usage)) == expected
    assert plain_usage(answer(usage, kv_transfer_params=None, timings={"n": 1})) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"choices":[]}', id="not_said"),
        pytest.param(answer(None), id="null"),
        pytest.param(answer({"input_tokens": 30, "output_tokens": 5}), id="another_dialect"),
        pytest.param(answer({**COUNTS, "prompt_cache_hit_tokens": 5}), id="more_than_is_known"),
        pytest.param(
            answer({**COUNTS, "prompt_tokens_details": {"reasoning_tokens": 2}}),
            id="in_an_unknown_place",
        ),
        pytest.param(answer({**COUNTS, "prompt_tokens": True}), id="a_boolean"),
        pytest.param(answer({**COUNTS, "prompt_tokens": 30.0}), id="a_float"),
        pytest.param(answer({**COUNTS, "completion_tokens": -1}), id="below_zero"),
        pytest.param(answer({**COUNTS, "completion_tokens": MOST + 1}), id="beyond_reason"),
        pytest.param(
            answer(
                {
                    **COUNTS,
                    "reasoning_tokens": 1,
                    "completion_tokens_details": {"reasoning_tokens": 2},
                }
            ),
            id="said_in_two_places",
        ),
        pytest.param(answer(COUNTS)[:-1], id="cut_off"),
        pytest.param(answer(COUNTS) + b"x", id="something_behind"),
        pytest.param(b"data: " + answer(COUNTS), id="an_event"),
        pytest.param(b"[" + answer(COUNTS) + b"]", id="deeper_inside"),
        pytest.param(b"[" * 100_000, id="far_too_deep"),
        pytest.param(b'{"x":"\xff\x01",' + answer(COUNTS)[1:], id="no_json_in_front"),
    ],
)
def test_everything_else_is_left_to_the_long_way(body: bytes) -> None:
    """Nothing is guessed here."""
    assert plain_usage(body) is None


@given(st.text(), st.booleans())
def test_no_text_is_taken_for_the_count(text: str, alone: bool) -> None:
    """Neither where there is a count as well nor where there is none."""
    said = text + FORGED + text
    message = {"role": "assistant", "content": said, "arguments": json.dumps({"usage": COUNTS})}
    choices = [{"message": message, "usage": {**COUNTS, "prompt_tokens": 1}}]
    told = {} if alone else {"usage": COUNTS}
    for members in ({"choices": choices, **told}, {**told, "choices": choices}):
        body = json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")

        assert plain_usage(body) == (None if alone else Usage(30, 5))


NUMBERS = st.none() | st.booleans() | st.integers(-2, 40) | st.just(MOST + 1) | st.just(1.5)
NAMES = st.sampled_from(
    [
        *("cached_tokens", "reasoning_tokens", "audio_tokens", "accepted_prediction_tokens"),
        *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"),
        *("prompt_cache_hit_tokens", "cache_read_input_tokens", "other"),
    ]
)
DETAILS = st.sampled_from(["prompt_tokens_details", "completion_tokens_details", "tokens"])
USAGES = st.builds(
    lambda first, second, parts: {**first, **second, **parts},
    st.just({"prompt_tokens": 30, "completion_tokens": 5}) | st.just({}),
    st.dictionaries(NAMES, NUMBERS, max_size=3),
    st.dictionaries(DETAILS, NUMBERS | st.dictionaries(NAMES, NUMBERS, max_size=3), max_size=2),
)


@given(USAGES)
def test_the_long_way_says_the_same(usage: dict[str, object]) -> None:
    """Whatever the short way says."""
    body = answer(usage)
    found = plain_usage(body)

    assert found is None or found == reported(body)
