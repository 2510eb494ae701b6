"""A stream that broke and is gone on with: the caller sees one text, told once."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import UpstreamBroken
from llmproxy.routing.continuing import Way, continuing_body, ways
from llmproxy.routing.delivered import CannotContinue, read_delivered
from llmproxy.routing.rescue import Continuation

WORDS = ["Once", " upon", " a", " time", " there", " wäre", " 猫", "."]
TEXT = "".join(WORDS)


def event(fields: dict[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chat(
    words: Sequence[str],
    *,
    name: str = "first",
    finish: str | None = "stop",
    usage: dict[str, int] | None = None,
) -> bytes:
    """Return a stream of a chat, finished or not."""
    about = {"id": name, "object": "chat.completion.chunk", "created": len(name), "model": "m"}

    def choice(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return event({**about, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    out = [choice({"role": "assistant", "content": ""})]
    out += [choice({"content": word}) for word in words]
    if finish is not None:
        out.append(choice({}, finish))
        if usage is not None:
            out.append(event({**about, "choices": [], "usage": usage}))
        out.append(b"data: [DONE]\n\n")
    return b"".join(out)


def events_in(stream: bytes) -> list[dict[str, Any]]:
    """Return the JSON of all events."""
    return [
        json.loads(part.removeprefix(b"data: "))
        for part in stream.split(b"\n\n")
        if part.startswith(b"data: {")
    ]


def text_in(stream: bytes) -> str:
    """Return the text that a client puts together."""
    return "".join(
        choice["delta"].get("content") or ""
        for each in events_in(stream)
        for choice in each["choices"]
    )


def rest_of(second: bytes, delivered: bytes, way: Way, cuts: Sequence[int] = ()) -> bytes:
    """Return what the caller gets of a second stream."""
    continuation = Continuation(read_delivered(delivered, chat=True), way)
    edges = [0, *cuts, len(second)]
    return b"".join(continuation.feed(second[a:b]) for a, b in itertools.pairwise(edges))


SECOND = chat(WORDS, name="other", usage={"prompt_tokens": 9, "completion_tokens": 8})


@given(
    st.integers(0, len(WORDS)),
    st.sets(st.integers(1, len(SECOND) - 1), max_size=8).map(sorted),
)
def test_asked_again_the_caller_gets_the_rest_and_nothing_twice(had: int, cuts: list[int]) -> None:
    """Wherever the first stream broke, and wherever the second one is cut."""
    first = chat(WORDS[:had], finish=None)

    rest = rest_of(SECOND, first, Way.AGAIN, cuts)

    assert text_in(first + rest) == TEXT
    assert rest.endswith(b"data: [DONE]\n\n")


@given(st.integers(1, len(TEXT) - 1))
def test_the_other_server_may_cut_its_words_elsewhere(at: int) -> None:
    """Tokens are not the same; the text is."""
    first = chat(WORDS[:4], finish=None)
    second = chat([TEXT[:at], TEXT[at:]], name="other")

    assert text_in(first + rest_of(second, first, Way.AGAIN)) == TEXT


@given(st.integers(0, 3))
def test_a_text_that_differs_is_no_continuation(at: int) -> None:
    """One other word in what the caller has, and the rescue is off."""
    other = [*WORDS[:at], " else", *WORDS[at + 1 :]]

    with pytest.raises(CannotContinue, match="differs"):
        rest_of(chat(other), chat(WORDS[:4], finish=None), Way.AGAIN)


def test_a_text_that_ends_before_what_the_caller_has_is_no_continuation() -> None:
    """It would end in the middle of what was said."""
    with pytest.raises(CannotContinue, match="differs"):
        rest_of(chat(WORDS[:2]), chat(WORDS[:4], finish=None), Way.AGAIN)


def test_a_continued_text_flows_on_under_the_first_name() -> None:
    """One id, one time, one role."""
    first = chat(WORDS[:3], finish=None)
    second = chat(WORDS[3:], name="other")

    rest = rest_of(second, first, Way.PREFILL)

    assert text_in(first + rest) == TEXT
    assert {each["id"] for each in events_in(rest)} == {"first"}
    assert {each["created"] for each in events_in(rest)} == {5}
    assert not any("role" in c["delta"] for each in events_in(rest) for c in each["choices"])


@pytest.mark.parametrize(
    ("way", "usage", "told"),
    [
        pytest.param(Way.PREFILL, (9 + 3, 5), (9, 8), id="continued"),
        pytest.param(Way.AGAIN, (9, 8), (9, 8), id="asked_again"),
    ],
)
def test_usage_is_that_of_the_text_the_caller_has(
    way: Way, usage: tuple[int, int], told: tuple[int, int]
) -> None:
    """What the first server generated counts, and nothing counts twice."""
    counted = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": 0}
    words = WORDS[3:] if way is Way.PREFILL else WORDS

    rest = rest_of(chat(words, usage=counted), chat(WORDS[:3], finish=None), way)

    got = events_in(rest)[-1]["usage"]
    assert (got["prompt_tokens"], got["completion_tokens"]) == told
    assert got["total_tokens"] == sum(told) or way is Way.AGAIN


TOOL = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        pytest.param(chat(WORDS), "finished", id="finished"),
        pytest.param(
            event({"choices": [{"index": 0, "delta": TOOL}]}), "more_than_text", id="half_a_call"
        ),
        pytest.param(
            event({"choices": [{"index": 1, "delta": {"content": "a"}}]}), "choices", id="choices"
        ),
        pytest.param(
            event({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"x": 1}}]}),
            "choices",
            id="logprobs",
        ),
        pytest.param(
            event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}),
            "more_than_text",
            id="reasoning",
        ),
        pytest.param(b"data: {nonsense\n\n", "event", id="malformed"),
        pytest.param(event({"error": {"message": "x"}}), "error", id="error"),
    ],
)
def test_what_cannot_be_continued_truthfully_is_not(kept: bytes, why: str) -> None:
    """The stream ends in its error event instead."""
    with pytest.raises(CannotContinue, match=why):
        read_delivered(kept, chat=True)


ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Tell"}]}


def asked(**changed: Any) -> bytes:
    """Return the body of a request."""
    return json.dumps({**ASKED, **changed}).encode()


def test_the_text_is_handed_over_as_the_beginning_of_the_answer() -> None:
    """In the words of the engine that gets it."""
    delivered = read_delivered(chat(WORDS[:3], finish=None), chat=True)

    body = json.loads(continuing_body(asked(max_tokens=10), delivered, Way.PREFILL, "vllm"))

    assert body["messages"][-1] == {"role": "assistant", "content": "Once upon a"}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["max_tokens"] == 7


def test_asked_again_the_question_is_the_same() -> None:
    """Nothing is added that an engine might refuse."""
    delivered = read_delivered(chat(WORDS[:3], finish=None), chat=True)

    body = json.loads(continuing_body(asked(max_tokens=10), delivered, Way.AGAIN, "openai"))

    assert body == {**ASKED, "max_tokens": 10}


def test_a_prompt_goes_on_where_the_text_ended() -> None:
    """Completions can be continued by every engine."""
    kept = event({"id": "c", "choices": [{"index": 0, "text": "Once"}]})
    delivered = read_delivered(kept, chat=False)
    body = json.dumps({"model": "m", "prompt": "Tell: "}).encode()

    assert json.loads(continuing_body(body, delivered, Way.PREFILL, "http"))["prompt"] == (
        "Tell: Once"
    )
    assert ways("http", chat=False)[0] is Way.PREFILL


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"n": 2}, id="choices"),
        pytest.param({"logprobs": True}, id="logprobs"),
        pytest.param({"max_tokens": 3}, id="nothing_left"),
        pytest.param({"messages": []}, id="no_message"),
        pytest.param({"messages": None, "prompt": [1, 2]}, id="token_ids"),
    ],
)
def test_a_request_that_cannot_be_continued_is_not(changed: dict[str, Any]) -> None:
    """It is known before another server is asked."""
    delivered = read_delivered(chat(WORDS[:3], finish=None), chat=True)

    with pytest.raises(CannotContinue):
        continuing_body(asked(**changed), delivered, Way.PREFILL, "vllm")


@pytest.mark.parametrize("way", list(Way))
def test_an_error_that_is_null_is_none(way: Way) -> None:
    """Some engines say in each event that there is none."""

    def at_ease(stream: bytes) -> bytes:
        return stream.replace(b"data: {", b'data: {"error":null,')

    delivered = at_ease(chat(WORDS[:3], finish=None))
    second = chat(WORDS if way is Way.AGAIN else WORDS[3:], name="other")
    rest = rest_of(at_ease(second), delivered, way)

    assert text_in(delivered + rest) == TEXT
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"error": {"message": "out of memory"}}, id="error"),
        pytest.param({"error": "out of memory"}, id="words"),
        pytest.param({"object": "error", "message": "out of memory"}, id="object"),
    ],
)
def test_a_failure_of_the_second_server_is_not_passed_on(said: dict[str, Any]) -> None:
    """However it says so; perhaps a third one can go on."""
    delivered = chat(WORDS[:3], finish=None)

    with pytest.raises(UpstreamBroken):
        rest_of(event(said), delivered, Way.PREFILL)


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"], ids=repr)
def test_a_last_word_without_its_blank_line_is_told_with_it(end: bytes, way: Way) -> None:
    """The server has closed right behind it."""
    delivered = chat(WORDS[:3], finish=None)
    second = chat(WORDS if way is Way.AGAIN else WORDS[3:], name="other")
    continuation = Continuation(read_delivered(delivered, chat=True), way)
    rest = continuation.feed(second.removesuffix(b"\n\n") + end) + continuation.rest()

    assert text_in(delivered + rest) == TEXT
    assert rest.endswith(b"}\n\ndata: [DONE]\n\n")
    assert continuation.rest() == b""


def test_half_an_event_at_the_end_is_left_out() -> None:
    """Nobody could read it, and nobody will finish it."""
    delivered = chat(WORDS[:3], finish=None)
    continuation = Continuation(read_delivered(delivered, chat=True), Way.PREFILL)
    continuation.feed(chat(WORDS[3:], name="other", finish=None) + b'data: {"choi')

    assert continuation.rest() == b""
