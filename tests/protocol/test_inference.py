"""What a body asks for, and what is no request at all."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmproxy.errors import InvalidJson, InvalidRequest
from llmproxy.protocol.inference import LARGE, read_inference
from llmproxy.records import Ending, InferenceRequest

DEEP = 100_000
MOST = 2**63 - 1  # what is counted


def large(body: bytes) -> bytes:
    """Return the same JSON above the threshold: blanks are allowed in front of it."""
    return b" " * (LARGE + 1) + body


def understood(body: bytes) -> InferenceRequest:
    """Return what is understood, apart from the size, which the two ways cannot share."""
    asked = read_inference(body)
    assert asked.prompt_bytes == len(body)
    return replace(asked, prompt_bytes=0)


def verdict(body: bytes) -> InferenceRequest | None:
    """Return what is understood, None for what is refused. Nothing else may happen."""
    try:
        return understood(body)
    except (InvalidJson, InvalidRequest):
        return None


NOT_JSON = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="truncated"),
    pytest.param(b'{"model":"a"', id="truncated_object"),
    pytest.param(b'{"model":"a', id="truncated_string"),
    pytest.param(b'{"model":"a"} x', id="trailing_bytes"),
    pytest.param(b'{"model":"a"}{}', id="two_objects"),
    pytest.param(b'{"model":"a",}', id="trailing_comma"),
    pytest.param(b'{"t":[1,]}', id="trailing_comma_inside"),
    pytest.param(b"{'model':'a'}", id="single_quotes"),
    pytest.param(b'{model:"a"}', id="bare_key"),
    pytest.param(b'\xef\xbb\xbf{"model":"a"}', id="bom"),
    pytest.param(b'{"t":NaN}', id="nan"),
    pytest.param(b'{"t":Infinity}', id="infinity"),
    pytest.param(b'{"t":-Infinity}', id="minus_infinity"),
    pytest.param(b'{"t":01}', id="leading_zero"),
    pytest.param(b'{"t":+1}', id="plus"),
    pytest.param(b'{"t":.5}', id="no_integer_part"),
    pytest.param(b'{"t":1.}', id="no_fraction"),
    pytest.param(b'{"t":1e}', id="no_exponent"),
    pytest.param(b'{"t":-}', id="minus_alone"),
    pytest.param(b'{"t":0x10}', id="hexadecimal"),
    pytest.param(b'{"t":tru}', id="half_a_literal"),
    pytest.param(b'{"t":"\\ud800"}', id="lone_surrogate"),
    pytest.param(b'{"t":"\\udc00"}', id="lone_low_surrogate"),
    pytest.param(b'{"t":"\\ud800\\u0041"}', id="half_a_pair"),
    pytest.param(b'{"model":"\\ud800"}', id="lone_surrogate_in_the_model"),
    pytest.param(b'{"\\ud800":1}', id="lone_surrogate_in_a_key"),
    pytest.param(b'{"t":"\\x41"}', id="unknown_escape"),
    pytest.param(b'{"t":"\\u12"}', id="short_escape"),
    pytest.param(b'{"t":"\\u12zz"}', id="wrong_escape"),
    pytest.param(b'{"t":"\n"}', id="control_character"),
    pytest.param(b'{"t":"\x00"}', id="nul"),
    pytest.param(b'{"t":"\xff"}', id="bad_utf8"),
    pytest.param(b'{"t":"\xc0\xaf"}', id="overlong_utf8"),
    pytest.param(b'{"t":"\xed\xa0\x80"}', id="surrogate_in_utf8"),
    pytest.param(b'{"\xff":1}', id="bad_utf8_in_a_key"),
    pytest.param('{"model":"a"}'.encode("utf-16"), id="utf16"),
    pytest.param('{"model":"a"}'.encode("utf-16-le"), id="utf16_without_mark"),
    pytest.param(b'{"t":' + b"[" * DEEP + b"]" * DEEP + b"}", id="too_deep"),
]


@pytest.mark.parametrize("body", NOT_JSON)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Whatever the fault is, it is the caller's, and it is said in fixed words."""
    with pytest.raises(InvalidJson) as refusal:
        read_inference(body)

    assert refusal.value.detail == "The request body is not valid JSON."


@pytest.mark.parametrize("body", NOT_JSON)
def test_size_excuses_nothing(body: bytes) -> None:
    """A large body is read by other means, and refused for the same faults."""
    with pytest.raises(InvalidJson):
        read_inference(large(body))


@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'[{"model":"a"}]', id="list_of_one"),
        pytest.param(b'"model"', id="string"),
        pytest.param(b"1", id="number"),
        pytest.param(b"true", id="boolean"),
        pytest.param(b'{"model":1}', id="number_as_model"),
        pytest.param(b'{"model":true}', id="boolean_as_model"),
        pytest.param(b'{"model":["a"]}', id="list_as_model"),
        pytest.param(b'{"model":{"id":"a"}}', id="object_as_model"),
    ],
)
def test_json_that_asks_for_nothing(body: bytes, size: Any) -> None:
    """It must be an object, and its model a string."""
    with pytest.raises(InvalidRequest):
        read_inference(size(body))


@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"{}", InferenceRequest(), id="nothing"),
        pytest.param(b'{"model":null}', InferenceRequest(), id="null_model"),
        pytest.param(b'{"model":""}', InferenceRequest(""), id="empty_model"),
        pytest.param(b'{"model":"a"}', InferenceRequest("a"), id="model"),
        pytest.param('{"model":"日本🦙"}'.encode(), InferenceRequest("日本🦙"), id="wide_model"),
        pytest.param(
            b'{"model":"\\ud83e\\udd99"}', InferenceRequest("\U0001f999"), id="escaped_pair"
        ),
        pytest.param(b'{"\\u006dodel":"a"}', InferenceRequest("a"), id="escaped_key"),
        pytest.param(b'{"x":{"model":"b"}}', InferenceRequest(), id="only_the_outermost"),
        pytest.param(b'{"stream":true}', InferenceRequest(stream=True), id="stream"),
        pytest.param(b'{"stream":false}', InferenceRequest(), id="no_stream"),
        pytest.param(b'{"stream":null}', InferenceRequest(), id="stream_null"),
        pytest.param(b'{"stream":"true"}', InferenceRequest(), id="stream_as_text"),
        pytest.param(b'{"stream":1}', InferenceRequest(), id="stream_as_number"),
        pytest.param(
            b'{"n":18446744073709551616}',
            InferenceRequest(choices=MOST, answers=MOST),
            id="two_to_the_64th",
        ),
        pytest.param(b'{"n":-9223372036854775809}', InferenceRequest(), id="below_64_bits"),
        pytest.param(b'{"max_tokens":5}', InferenceRequest(max_tokens=5), id="max_tokens"),
        pytest.param(b'{"max_completion_tokens":5}', InferenceRequest(max_tokens=5), id="newer"),
        pytest.param(b'{"max_output_tokens":5}', InferenceRequest(max_tokens=5), id="responses"),
        pytest.param(b'{"options":{"num_predict":5}}', InferenceRequest(max_tokens=5), id="ollama"),
        pytest.param(
            b'{"max_tokens":1,"max_completion_tokens":9}',
            InferenceRequest(max_tokens=9),
            id="the_most_of_two",
        ),
        pytest.param(
            b'{"max_completion_tokens":"9","max_tokens":7}',
            InferenceRequest(max_tokens=9),
            id="text_that_some_engines_read",
        ),
        pytest.param(
            b'{"max_tokens":7,"options":{"num_predict":-1}}',
            InferenceRequest(),
            id="without_end_for_ollama",
        ),
        *(
            pytest.param(b'{"max_tokens":%b,"n":%b}' % (value, value), InferenceRequest(), id=name)
            for name, value in {
                "no_tokens": b"0",
                "minus_one": b"-1",
                "boolean": b"true",
                "no_number": b'"many"',
                "no_number_at_all": b'"nan"',
                "list": b"[5]",
                "null": b"null",
            }.items()
        ),
        pytest.param(
            b'{"max_tokens":1000000000,"n":1000000000}',
            InferenceRequest(max_tokens=10**9, choices=10**9, answers=10**9),
            id="as_much_as_an_engine_would_take",
        ),
        *(
            pytest.param(
                b'{"max_tokens":%b,"n":%b}' % (value, value),
                InferenceRequest(max_tokens=count, choices=count, answers=count),
                id=name,
            )
            for name, value, count in [
                ("beyond_31_bits", b"2147483648", 2**31),
                ("beyond_63_bits", b"9223372036854775808", MOST),
                ("beyond_64_bits", b"18446744073709551616", MOST),
                ("beyond_reason", b"1e300", MOST),
                ("whole_float", b"5.0", 5),
                ("exponent", b"1e9", 10**9),
            ]
        ),
        *(
            pytest.param(
                b'{"max_tokens":%b,"n":%b}' % (value, value),
                InferenceRequest(choices=count, answers=count),
                id=f"in_doubt_{name}",
            )
            for name, value, count in [
                ("number", b'"5"', 5),
                ("float", b'"5.0"', 5),
                ("blanks", b'" 5 "', 5),
                ("large", b'"18446744073709551616"', MOST),
                ("endless", b'"inf"', MOST),
                ("fraction", b"1.5", 2),
            ]
        ),
        pytest.param(
            b'{"best_of":"10","n":2}',
            InferenceRequest(choices=10, answers=2),
            id="best_of_as_text",
        ),
        pytest.param(b'{"best_of":10.0}', InferenceRequest(choices=10), id="best_of_as_float"),
        *(
            pytest.param(
                b'{"max_tokens":1,%b}' % other, InferenceRequest(max_tokens=5000), id=other.decode()
            )
            for other in (
                b'"max_completion_tokens":5000',
                b'"max_completion_tokens":"5000"',
                b'"max_output_tokens":5000',
                b'"n_predict":5000',
                b'"max_new_tokens":5000',
                b'"options":{"num_predict":5000}',
            )
        ),
        pytest.param(
            b'{"max_tokens":7,"n_predict":-1}', InferenceRequest(), id="without_end_for_llama_cpp"
        ),
        pytest.param(
            b'{"max_tokens":7,"n_predict":null}', InferenceRequest(max_tokens=7), id="null_limit"
        ),
        *(
            pytest.param(
                b'{"prompt":%b,"n":2}' % prompt,
                InferenceRequest(choices=2 * count, answers=2 * count),
                id=name,
            )
            for name, prompt, count in [
                ("one_prompt", b'"a,b"', 1),
                ("prompts", b'["a,b","[c","d"]', 3),
                ("list_of_one_prompt", b'[ "a" ]', 1),
                ("token_ids", b"[ 1,2,3]", 1),
                ("negative_token_ids", b"[-1,2,3]", 1),
                ("lists_of_token_ids", b"[[1,2],[3]]", 2),
                ("prompt_objects", b'[{"prompt_string":"a"},{"prompt_string":"b"}]', 2),
                ("lists_and_texts", b'[[1,2],"a",[3]]', 3),
                ("no_prompt_in_the_list", b"[]", 1),
                ("null_prompt", b"null", 1),
                ("number_as_prompt", b"5", 1),
            ]
        ),
        pytest.param(
            b'{"prompt_embeds":["a","b"]}', InferenceRequest(choices=2, answers=2), id="embeds"
        ),
        pytest.param(
            b'{"prompt":["a","b"],"prompt_embeds":["a","b"],"best_of":3}',
            InferenceRequest(choices=12, answers=4),
            id="prompts_and_embeds",
        ),
        pytest.param(b'{"max_completion_tokens":-1}', InferenceRequest(), id="newer_without_sense"),
        pytest.param(b'{"n":3}', InferenceRequest(choices=3, answers=3), id="choices"),
        pytest.param(b'{"best_of":4}', InferenceRequest(choices=4), id="best_of"),
        pytest.param(
            b'{"n":2,"best_of":4}', InferenceRequest(choices=4, answers=2), id="n_of_best_of"
        ),
        pytest.param(b'{"n":4,"best_of":-2}', InferenceRequest(choices=4, answers=4), id="n_alone"),
        pytest.param(
            b'{"n":2,"best_of":3,"prompt":["a","b"]}',
            InferenceRequest(choices=6, answers=4),
            id="choices_of_prompts",
        ),
        pytest.param(
            b'{"n":18446744073709551616,"prompt":["a","b"]}',
            InferenceRequest(choices=MOST, answers=MOST),
            id="no_more_than_a_count_may_be",
        ),
        pytest.param(b'{"options":[5]}', InferenceRequest(), id="options_as_list"),
        pytest.param(
            b'{"stream_options":null}', InferenceRequest(has_options=True), id="no_options"
        ),
        pytest.param(
            b'{"stream_options":{}}', InferenceRequest(has_options=True), id="empty_options"
        ),
        pytest.param(
            b'{"stream_options":"x"}', InferenceRequest(has_options=True), id="options_as_text"
        ),
        pytest.param(
            b'{"stream_options":{"include_usage":true}}',
            InferenceRequest(include_usage=True, has_options=True),
            id="usage_wanted",
        ),
        pytest.param(
            b'{"stream_options":{"include_usage":false}}',
            InferenceRequest(include_usage=False, has_options=True),
            id="usage_not_wanted",
        ),
        pytest.param(
            b'{"stream_options":{"include_usage":1}}',
            InferenceRequest(has_options=True),
            id="usage_by_number",
        ),
        pytest.param(b'\r\n\t {"model" : "a"}\n', InferenceRequest("a"), id="blanks"),
        pytest.param(b'{"t":"\\u0000"}', InferenceRequest(), id="escaped_nul"),
        pytest.param(b'{"t":%b}' % (b"[" * 500 + b"]" * 500), InferenceRequest(), id="deep"),
    ],
)
def test_what_is_understood(body: bytes, expected: InferenceRequest, size: Any) -> None:
    """What is needed to judge a request; everything else is the model server's business."""
    assert understood(size(body)) == expected


@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize(
    ("ending", "name", "heeded"),
    [
        (Ending.CHAT, "max_tokens", True),
        (Ending.CHAT, "max_completion_tokens", True),
        (Ending.CHAT, "max_output_tokens", False),
        (Ending.CHAT, "n_predict", False),
        (Ending.CHAT, "max_new_tokens", False),
        (Ending.CHAT, "num_predict", False),
        (Ending.MESSAGES, "max_tokens", True),
        (Ending.MESSAGES, "max_completion_tokens", False),
        (Ending.RESPONSES, "max_output_tokens", True),
        (Ending.RESPONSES, "max_tokens", False),
        (Ending.NDJSON, "num_predict", True),
        (Ending.NDJSON, "max_tokens", False),
        (Ending.UNKNOWN, "n_predict", True),
    ],
)
def test_a_limit_that_an_engine_may_pass_over_is_none(
    ending: Ending, name: str, heeded: bool, size: Any
) -> None:
    """Each path has names that all of its engines know; alone, another one limits nothing."""
    said: dict[str, object] = {"options": {name: 5}} if name == "num_predict" else {name: 5}

    assert read_inference(size(json.dumps(said).encode()), ending).max_tokens == (
        5 if heeded else None
    )


@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"a","model":"b"}', id="twice"),
        pytest.param(b'{"model":"a","x":{"model":"c"},"model":"b"}', id="around_another"),
        pytest.param(b'{"model":"a","\\u006dodel":"b"}', id="escaped_second"),
        pytest.param(b'{"\\u006dodel":"a","mod\\u0065l":"b"}', id="both_escaped"),
        pytest.param(b'{"\\u006D\\u006F\\u0064\\u0065\\u006C":"a","model":"b"}', id="all_escaped"),
        pytest.param(b'{"model" :"a","model"\r\n\t:"b"}', id="blanks_before_the_colon"),
        pytest.param(b'{"model":"a","model":null}', id="taken_back"),
        pytest.param(b'{"model":"a","Model":"b"}', id="capital"),
        pytest.param(b'{"MODEL":"b"}', id="capitals_alone"),
        pytest.param(b'{"mod\\u0045l":"b"}', id="escaped_capital"),
    ],
)
def test_a_model_that_depends_on_the_reader_is_refused(body: bytes, size: Any) -> None:
    """What is allowed here must be what the engine will read."""
    with pytest.raises(InvalidRequest) as refusal:
        read_inference(size(body))

    assert refusal.value.param == "model"


@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(
            {"messages": [{"content": 'a "model" and {"model":"b","model":"c"}'}]}, id="text"
        ),
        pytest.param({"x": {"model": "b"}, "y": [{"model": "c"}, {"model": "d"}]}, id="deeper"),
        pytest.param({"stop": ["model", "model"], "y": {"z": "model"}}, id="values"),
        pytest.param({"models": ["b"], "x.model": 1, "model_kwargs": {}}, id="longer_names"),
        pytest.param({"x": '\\u006dodel": "b'}, id="escaped_backslash"),
        pytest.param({"x": "mod\u0065l"}, id="escapes_in_values"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_prompt_may_speak_of_models(rest: dict[str, object], first: bool, size: Any) -> None:
    """Only a second key at the top is in doubt."""
    value = {"model": "a", **rest} if first else {**rest, "model": "a"}

    assert understood(size(json.dumps(value).encode())) == InferenceRequest("a")


MODEL_KEYS = st.sampled_from(["model", "\\u006dodel", "m\\u006fdel", "x", "modem", "\\u006dodem"])


@given(st.lists(MODEL_KEYS, max_size=4), st.lists(MODEL_KEYS, max_size=4), st.booleans())
def test_two_models_are_found_wherever_they_are(
    top: list[str], deep: list[str], late: bool
) -> None:
    """A parser that keeps every pair is the judge."""
    inner = "{" + ",".join(f'"{key}":"i"' for key in deep) + "}"
    members = [f'"{key}":"t"' for key in top]
    members.insert(len(members) if late else 0, f'"data":{inner}')
    body = ("{" + ",".join(members) + "}").encode()
    pairs: list[tuple[str, object]] = json.loads(body, object_pairs_hook=lambda pairs: pairs)
    models = [key for key, _ in pairs if key == "model"]

    assert (verdict(body) is None) == (verdict(large(body)) is None) == (len(models) > 1)


def test_a_large_text_is_checked_where_it_is_cut() -> None:
    """It is looked at in parts, and a letter of several bytes may be in two of them."""
    for shift in range(4):
        text = b"x" * shift + "🦙".encode() * 200_000
        assert understood(b'{"model":"a","t":"%b"}' % text) == InferenceRequest("a")
        for broken in (text[:-1], text[:500_001] + b"\xff" + text[500_002:]):
            assert verdict(b'{"model":"a","t":"%b"}' % broken) is None


def test_a_long_list_in_the_place_of_a_number_is_none() -> None:
    """In a large body its values are not even built."""
    numbers = b"[%b1]" % (b"1234567890," * 100_000)
    body = b'{"model":"a","n":%b,"best_of":%b,"max_tokens":5}' % (numbers, numbers)

    assert understood(body) == InferenceRequest("a", max_tokens=5)
    assert understood(b'{"max_tokens":5,"n_predict":%b}' % numbers) == InferenceRequest()


def test_options_that_are_too_long_to_be_read_may_hold_anything() -> None:
    """What is not looked at cannot be relied on: there may be no limit."""
    body = b'{"max_tokens":5,"options":{"num_predict":5000,"x":"%b"}}' % (b"x" * LARGE)

    assert understood(body) == InferenceRequest()


def test_a_number_with_more_digits_than_are_read_is_refused() -> None:
    """It could be any: 5, with thousands of zeros behind the point."""
    with pytest.raises(InvalidRequest):
        read_inference(large(b'{"n":5.%b}' % (b"0" * 5000)))


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        pytest.param(b'["%b"%b]' % (b"a, " * LARGE, b',"b"' * 49), 50, id="texts"),
        pytest.param(b"[[1%b]%b]" % (b",12345" * 10**6, b",[1]" * 49), 50, id="token_ids_of_many"),
        pytest.param(b"[1%b]" % (b",12345" * 10**6), 1, id="token_ids_of_one"),
        pytest.param(b'["%b"]' % (b"," * 2**20), 1, id="one_text_with_many_commas"),
        pytest.param(b'["a"%b]' % (b',"a"' * 254), 255, id="nearly_as_many_as_are_seen_at_once"),
        pytest.param(b'["a"%b]' % (b',"a"' * 255), 256, id="as_many_as_are_seen_at_once"),
        pytest.param(b'["a"%b]' % (b',"a"' * (2**18)), 2**18 + 1, id="as_many_as_are_counted"),
    ],
)
def test_the_prompts_of_a_large_body_are_counted(prompt: bytes, count: int) -> None:
    """Each has an answer of its own."""
    assert understood(large(b'{"prompt":%b}' % prompt)) == InferenceRequest(
        choices=count, answers=count
    )


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(b'["a"%b]' % (b',"a"' * (2**18 + 1)), id="texts"),
        pytest.param(b'["a"%b]' % (b",1" * (2**18 + 1)), id="texts_and_numbers"),
        pytest.param(b"[[]%b]" % (b",[]" * (2**18 + 1)), id="token_ids"),
        pytest.param(b"[[]%b]" % (b",1" * (2**18 + 1)), id="token_ids_and_numbers"),
    ],
)
def test_more_prompts_than_can_be_counted_are_refused(prompt: bytes) -> None:
    """So nobody can fill our memory, or have us count for seconds."""
    with pytest.raises(InvalidRequest) as refusal:
        read_inference(b'{"prompt":%b}' % prompt)

    assert refusal.value.param == "prompt"


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 400])
def test_a_number_out_of_range_in_a_large_body_is_left_to_the_engine(number: bytes) -> None:
    """To check it, the values between would have to be built: 0.5 s for 16 MiB of token ids."""
    body = b'{"model":"a","t":%b}' % number

    assert verdict(body) is None
    assert verdict(large(body)) == InferenceRequest("a")


@pytest.mark.parametrize("number", [b"1e-999", b"0." + b"1" * 400], ids=["too_fine", "too_exact"])
def test_a_number_that_is_rounded_is_judged_alike(number: bytes) -> None:
    """A float that loses digits is one all the same, whatever the size of the body."""
    body = b'{"model":"a","t":%b}' % number

    assert verdict(body) == verdict(large(body)) == InferenceRequest("a")


BRACKETS = pytest.mark.parametrize(
    "brackets", [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"]
)


def nested(depth: int, brackets: tuple[bytes, bytes]) -> bytes:
    """Return a request with a value so many levels deep."""
    return b'{"model":"a","t":%b1%b}' % (brackets[0] * depth, brackets[1] * depth)


@BRACKETS
@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize("depth", [1, 100, 250, 255, 300, 500, 800])
def test_depth_that_orjson_could_not_write_is_read(
    depth: int, brackets: tuple[bytes, bytes], size: Any
) -> None:
    """The bytes go on as they came, so nobody has to be able to write them."""
    assert understood(size(nested(depth, brackets))) == InferenceRequest("a")


@BRACKETS
@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize("depth", [1024, 1100, 5000, DEEP])
def test_depth_beyond_reason_is_refused(
    depth: int, brackets: tuple[bytes, bytes], size: Any
) -> None:
    """A stack is never overrun, and the caller is told that it is the body."""
    with pytest.raises(InvalidJson):
        read_inference(size(nested(depth, brackets)))


@BRACKETS
@pytest.mark.parametrize("size", [bytes, large], ids=["small", "large"])
@pytest.mark.parametrize("depth", range(900, 1024, 10))
def test_between_the_two_either_is_right(
    depth: int, brackets: tuple[bytes, bytes], size: Any
) -> None:
    """Where the limit lies depends on the stack that is in use; an error of ours it never is."""
    assert verdict(size(nested(depth, brackets))) in (InferenceRequest("a"), None)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
REQUESTS = st.dictionaries(
    st.sampled_from(
        [
            *("model", "stream", "messages", "x", "modelo", "é", "max_tokens", "n", "options"),
            *("stream_options", "Model", "prompt", "prompt_embeds", "best_of", "n_predict"),
        ]
    ),
    JSON,
    max_size=6,
)


@given(REQUESTS)
def test_both_ways_of_reading_agree(value: dict[str, object]) -> None:
    """The fast way for large bodies understands what the whole parse understands."""
    body = orjson.dumps(value) if _dumps(value) else b"{}"

    assert verdict(body) == verdict(large(body))


@given(REQUESTS, st.data())
def test_both_ways_agree_on_damaged_bodies(value: dict[str, object], data: st.DataObject) -> None:
    """A byte that is lost, doubled or changed is noticed by both or by neither."""
    whole = orjson.dumps(value) if _dumps(value) else b"{}"
    place = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(
        st.sampled_from([b"", b'"', b"\\", b",", b"}", b"\xff", b"0", b"\n", b"-", b"["])
    )
    body = whole[:place] + put + whole[place + data.draw(st.integers(0, 2)) :]

    assert verdict(body) == verdict(large(body)), body


def test_a_large_body_is_not_read_whole() -> None:
    """Numbers by the hundred thousand are passed over: their values are never built."""
    body = b'{"model":"a","stream":true,"prompt":[%b1]}' % (b"1234567890," * 100_000)

    assert understood(body) == InferenceRequest("a", stream=True)


def _dumps(value: object) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return False  # a lone surrogate, or an integer above 64 bits
    return True
