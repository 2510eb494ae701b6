"""What a request has used, told from the bytes of its answer."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import codec
from llmproxy.protocol import usage_tap
from llmproxy.protocol.endpoints import NATIVE, UNDERSTOOD
from llmproxy.protocol.usage_plain import plain_usage
from llmproxy.protocol.usage_tap import Charge, UsageTap
from llmproxy.protocol.usage_trace import HEAD, LARGE_CHUNK, MOST_CHUNKS, TAIL
from llmproxy.records import Endpoint, InferenceRequest, Usage

CHAT = UNDERSTOOD[b"/v1/chat/completions"]
COMPLETIONS = UNDERSTOOD[b"/v1/completions"]
EMBEDDINGS = UNDERSTOOD[b"/v1/embeddings"]
RERANK = UNDERSTOOD[b"/v1/rerank"]
MESSAGES = UNDERSTOOD[b"/v1/messages"]
RESPONSES = UNDERSTOOD[b"/v1/responses"]
OLLAMA_CHAT = NATIVE[b"/api/chat"]
OLLAMA_GENERATE = NATIVE[b"/api/generate"]
OLLAMA_EMBED = NATIVE[b"/api/embed"]
GENERATE = Endpoint("native", native=True)

EVENTS = b"text/event-stream; charset=utf-8"
LINES = b"application/x-ndjson"
JSON = b"application/json"

ASKED = InferenceRequest("m", prompt_bytes=401)
PROMPT = 101  # what a body of so many bytes is taken for


def event(value: object, kind: str = "") -> bytes:
    name = f"event: {kind}\n".encode() if kind else b""
    return name + b"data: " + line(value) + b"\n"


def line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def chunk(delta: object, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({"id": "1", "object": "chat.completion.chunk", "choices": [choice], **more})


def typed(kind: str, **more: Any) -> bytes:
    return event({"type": kind, **more}, kind)


def counts(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    total = prompt + completion
    said = {"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": completion}
    return {"usage": {**said, **more}}


DONE = b"data: [DONE]\n\n"
WORDS = ["Hel", "lö", ' "usage": {"prompt_tokens": 9}', "data: [DONE]\n\n", "\r\n\r\n\u2028\u0085"]

VLLM = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": word}) for word in WORDS),
    chunk({}, "stop"),
    event({"id": "1", "choices": [], **counts(30, 5, prompt_tokens_details=None)}),
    DONE,
]
ANTHROPIC = [
    typed(
        "message_start",
        message={
            "id": "msg_1",
            "content": [],
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 4,
                "cache_read_input_tokens": 16,
                "output_tokens": 1,
            },
        },
    ),
    typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    typed("ping"),
    *(
        typed("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        for word in WORDS
    ),
    typed("content_block_stop", index=0),
    typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    typed("message_stop"),
]
OPENAI_RESPONSES = [
    typed("response.created", response={"status": "in_progress", "usage": None}),
    *(typed("response.output_text.delta", delta=word) for word in WORDS),
    typed("response.output_text.done", text="".join(WORDS)),
    typed(
        "response.completed",
        response={
            "output": [{"content": [{"text": "".join(WORDS) * 800}]}],
            "tools": [{"parameters": {"properties": {"usage": {"type": "object"}}}}],
            "usage": {
                "input_tokens": 30,
                "input_tokens_details": {"cached_tokens": 16},
                "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 35,
            },
            "user": None,
            "metadata": {},
        },
    ),
]
OLLAMA = [
    *(line({"message": {"role": "assistant", "content": word}, "done": False}) for word in WORDS),
    line(
        {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "context": list(range(5000)),
            "total_duration": 4_000_000_000_000,
            "prompt_eval_count": 30,
            "prompt_eval_duration": 10**12,
            "eval_count": 5,
            "eval_duration": 10**12,
        }
    ),
]

# Name: endpoint, content type, the pieces as they are written, what the server has counted.
REPORTED: dict[str, tuple[Endpoint, bytes, list[bytes], Usage]] = {
    "vllm": (CHAT, EVENTS, VLLM, Usage(30, 5)),
    "vllm, every chunk": (
        CHAT,
        EVENTS,
        [*(chunk({"content": w}, **counts(30, n + 1)) for n, w in enumerate(WORDS)), DONE],
        Usage(30, 5),
    ),
    "sglang": (
        CHAT,
        EVENTS,
        [
            chunk({"role": "assistant", "content": "", "tool_calls": None}, usage=None),
            *(chunk({"content": word}, usage=None) for word in WORDS),
            chunk({"content": None}, "stop", usage=None),
            event({"choices": [], **counts(30, 5, prompt_tokens_details={"cached_tokens": 16})}),
            DONE,
        ],
        Usage(30, 5, cached=16),
    ),
    "llama.cpp": (
        CHAT,
        EVENTS,
        [
            *(chunk({"content": word}) for word in WORDS),
            event({"choices": [], **counts(30, 5), "timings": {"prompt_n": 3, "cache_n": 27}}),
            DONE,
        ],
        Usage(30, 5),
    ),
    "openai": (
        COMPLETIONS,
        EVENTS,
        [
            *(event({"choices": [{"text": word}], "usage": None}) for word in WORDS),
            event(
                {
                    "choices": [],
                    **counts(
                        *(30, 5),
                        prompt_tokens_details={"cached_tokens": 16, "audio_tokens": 0},
                        completion_tokens_details={"reasoning_tokens": 2},
                    ),
                }
            ),
            DONE,
        ],
        Usage(30, 5, cached=16, reasoning=2),
    ),
    "anthropic": (MESSAGES, EVENTS, ANTHROPIC, Usage(30, 5, cached=16)),
    "anthropic, long": (
        MESSAGES,
        EVENTS,
        [*ANTHROPIC[:3], *[ANTHROPIC[3]] * 100, *ANTHROPIC[3:]],
        Usage(30, 5, cached=16),
    ),
    "responses": (RESPONSES, EVENTS, OPENAI_RESPONSES, Usage(30, 5, cached=16, reasoning=2)),
    "ollama": (OLLAMA_CHAT, LINES, OLLAMA, Usage(30, 5)),
    "tgi": (
        GENERATE,
        EVENTS,
        [
            *(event({"index": n, "token": {"text": word}}) for n, word in enumerate(WORDS)),
            event({"index": 5, "details": {"generated_tokens": 5, "input_length": 30}}),
        ],
        Usage(30, 5),
    ),
    "sglang's own": (
        GENERATE,
        EVENTS,
        [
            *(
                event({"text": w, "meta_info": {"prompt_tokens": 30, "completion_tokens": n + 1}})
                for n, w in enumerate(WORDS)
            ),
            DONE,
        ],
        Usage(30, 5),
    ),
    "said twice": (
        CHAT,
        EVENTS,
        [chunk({"content": "a"}), event(counts(30, 1)), event(counts(30, 5)), DONE],
        Usage(30, 5),
    ),
    "said again behind the end": (
        CHAT,
        EVENTS,
        [chunk({"content": "a"}, "stop", **counts(30, 5)), DONE, event(counts(1, 1))],
        Usage(30, 5),
    ),
    "json": (CHAT, JSON, [line({"choices": [], **counts(30, 5)})], Usage(30, 5)),
    "json, long": (
        CHAT,
        JSON,
        [line({"choices": [{"message": {"content": w * 9000}} for w in WORDS], **counts(30, 5)})],
        Usage(30, 5),
    ),
    "json, anthropic": (
        MESSAGES,
        JSON,
        [
            line(
                {
                    "content": [{"type": "tool_use", "input": {"usage": {"input_tokens": 7}}}],
                    "usage": {
                        "input_tokens": 14,
                        "cache_creation_input_tokens": None,
                        "cache_read_input_tokens": 16,
                        "output_tokens": 5,
                    },
                }
            )
        ],
        Usage(30, 5, cached=16),
    ),
    "json, ollama": (OLLAMA_GENERATE, JSON, [OLLAMA[-1]], Usage(30, 5)),
    "json, vectors": (
        EMBEDDINGS,
        JSON,
        [line({"data": [{"embedding": [0.1] * 9000}], **counts(30, 0)})],
        Usage(30, 0),
    ),
    "json, vectors behind": (
        EMBEDDINGS,
        JSON,
        [line({"usage": {"prompt_tokens": 30, "total_tokens": 30}, "data": [0.1] * 9000})],
        Usage(30, 0),
    ),
    "json, ollama's vectors": (
        OLLAMA_EMBED,
        JSON,
        [line({"embeddings": [[0.1] * 9000], "total_duration": 1, "prompt_eval_count": 30})],
        Usage(30, 0),
    ),
    "json, rerank": (RERANK, JSON, [line({"usage": {"total_tokens": 30}})], Usage(30, 0)),
    "json, rerank as cohere's": (
        RERANK,
        JSON,
        [line({"meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 30}}})],
        Usage(30, 0),
    ),
    "json, llama.cpp's own": (
        GENERATE,
        JSON,
        [line({"content": "a" * 20_000, "tokens_predicted": 5, "tokens_evaluated": 30})],
        Usage(30, 5),
    ),
}

every_report = pytest.mark.parametrize("name", REPORTED)


def tapped(
    endpoint: Endpoint,
    content_type: bytes,
    pieces: Iterable[bytes],
    *,
    status: int = 200,
    ended: bool = True,
    asked: InferenceRequest = ASKED,
) -> UsageTap:
    tap = UsageTap(endpoint, asked)
    tap.begin(status, [(b"content-type", content_type)])
    for piece in pieces:
        tap.note(piece)
    if ended:
        tap.end()
    return tap


def cut(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(places)]


@every_report
def test_what_the_server_has_counted_holds(name: str) -> None:
    """In every dialect that we know, wherever it is said."""
    endpoint, content_type, pieces, expected = REPORTED[name]

    assert tapped(endpoint, content_type, pieces).usage() == expected


@every_report
@pytest.mark.parametrize("counted_first", [False, True], ids=["usage_first", "count_first"])
def test_an_answer_that_is_there_as_a_whole_is_like_any_other(
    name: str, counted_first: bool
) -> None:
    """It is not looked at before somebody asks, and it does not matter what is asked first."""
    endpoint, content_type, pieces, expected = REPORTED[name]
    tap = UsageTap(endpoint, ASKED)
    tap.complete(200, [(b"content-type", content_type)], b"".join(pieces))
    tokens = tapped(endpoint, content_type, pieces).tokens_so_far

    assert not counted_first or tap.tokens_so_far == tokens
    assert tap.usage() == expected
    assert tap.tokens_so_far == tokens
    assert tap.finished


def test_a_whole_answer_that_is_no_success_costs_nothing() -> None:
    """However it was told."""
    tap = UsageTap(CHAT, ASKED)
    tap.complete(400, [(b"content-type", JSON)], line(counts(30, 5)))

    assert tap.usage() is None
    assert tap.tokens_so_far == 0


@pytest.mark.parametrize(
    ("endpoint", "said", "plainly"),
    [
        pytest.param(CHAT, {"prompt_tokens": 30, "completion_tokens": 5}, True, id="plain"),
        pytest.param(
            MESSAGES, {"input_tokens": 30, "output_tokens": 5}, False, id="another_dialect"
        ),
    ],
)
def test_an_answer_that_has_ended_is_read_once(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, said: dict[str, int], plainly: bool
) -> None:
    """It is asked for by everybody who charges for it, counts it or writes it down."""
    reads: list[object] = []

    def noting(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def noted(data: bytes) -> Any:
            reads.append(read)
            return read(data)

        return noted

    loads, plain = codec.loads, plain_usage
    monkeypatch.setattr(codec, "loads", noting(loads))
    monkeypatch.setattr(usage_tap, "plain_usage", noting(plain))
    tap = UsageTap(endpoint, InferenceRequest())
    tap.complete(200, [(b"content-type", JSON)], line({"choices": [], "usage": said}))

    assert not reads
    assert tap.usage("none") == tap.usage() == tap.usage("reported") == Usage(30, 5)
    assert reads == ([plain] if plainly else [loads])


@every_report
def test_every_cut_into_two(name: str) -> None:
    """The count does not depend on where the network cuts; nor does that of events."""
    endpoint, content_type, pieces, expected = REPORTED[name]
    stream = b"".join(pieces)
    events = tapped(endpoint, content_type, pieces).tokens_so_far
    step = max(1, len(stream) // 1500)

    for place in range(0, len(stream) + 1, step):
        tap = tapped(endpoint, content_type, [stream[:place], stream[place:]])
        assert tap.usage() == expected
        assert tap.tokens_so_far == events
        assert tap.finished


@given(st.data(), st.sampled_from(sorted(REPORTED)), st.booleans())
def test_any_cut(data: st.DataObject, name: str, asked_between: bool) -> None:
    """Many pieces, and questions in the middle of them."""
    endpoint, content_type, pieces, expected = REPORTED[name]
    stream = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=60))
    tap = tapped(endpoint, content_type, [], ended=False)

    for piece in cut(stream, cuts):
        tap.note(piece)
        if asked_between:
            tap.usage()
    tap.end()

    assert tap.usage() == expected


@every_report
@pytest.mark.parametrize("end", [b"\r\n", b"\r"], ids=["crlf", "cr"])
def test_lines_may_end_otherwise(name: str, end: bytes) -> None:
    """As the standard allows; lines of JSON end with LF alone."""
    endpoint, content_type, pieces, expected = REPORTED[name]
    if content_type != EVENTS:
        return
    stream = b"".join(pieces).replace(b"\n", end)

    assert tapped(endpoint, content_type, cut(stream, [100, 200])).usage() == expected


def without_report(name: str) -> list[bytes]:
    told = (b'"usage":{', b"eval_count", b"generated_tokens")
    return [piece for piece in REPORTED[name][2] if not any(word in piece for word in told)]


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("name", ["vllm", "sglang", "openai", "anthropic", "ollama"])
def test_without_a_report_events_are_counted(name: str, long: bool) -> None:
    """Those that carry nothing do not count, and the guess is marked as one."""
    endpoint, content_type, _, _ = REPORTED[name]
    pieces = without_report(name)
    if long:
        pieces[3:3] = [pieces[3]] * 1000
    stream = b"".join(pieces)

    tap = tapped(endpoint, content_type, cut(stream, range(0, len(stream), 7)))

    assert tap.usage() == Usage(PROMPT, 1005 if long else 5, estimated=True)


def test_events_of_an_engines_own_api_are_counted() -> None:
    """From the first to the last."""
    endpoint, content_type, pieces, _ = REPORTED["tgi"]

    assert tapped(endpoint, content_type, pieces[:5]).usage() == Usage(PROMPT, 5, estimated=True)


def test_tool_calls_and_thoughts_are_an_answer_too() -> None:
    """Whatever a model was at work for."""
    call = {"index": 0, "function": {"arguments": '{"a'}}
    pieces = [
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "hm"}),
        chunk({"reasoning": "hm"}),
        chunk({"tool_calls": [call]}),
        chunk({}, "tool_calls"),
        DONE,
    ]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(PROMPT, 3, estimated=True)


@pytest.mark.parametrize(
    ("endpoint", "answer", "expected"),
    [
        pytest.param(
            CHAT, {"choices": [{"message": {"content": "x" * 40}}]}, Usage(PROMPT, 10), id="chat"
        ),
        pytest.param(COMPLETIONS, {"choices": [{"text": "é" * 20}]}, Usage(PROMPT, 10), id="text"),
        pytest.param(
            MESSAGES,
            {"content": [{"text": "x" * 39}, {"input": {}}]},
            Usage(PROMPT, 10),
            id="block",
        ),
        pytest.param(
            RESPONSES,
            {"output": [{"content": [{"text": "x" * 40}]}]},
            Usage(PROMPT, 10),
            id="items",
        ),
        pytest.param(OLLAMA_GENERATE, {"response": "x" * 40}, Usage(PROMPT, 10), id="ollama"),
        pytest.param(GENERATE, {"generated_text": "x" * 40}, Usage(PROMPT, 10), id="tgi"),
        pytest.param(EMBEDDINGS, {"data": [{"embedding": [0.1]}]}, Usage(PROMPT, 0), id="vectors"),
        pytest.param(GENERATE, {"tokens": [1, 2, 3]}, Usage(0, 0), id="something_else"),
        pytest.param(CHAT, "text", Usage(PROMPT, 1), id="no_object"),
    ],
)
def test_an_answer_without_a_report_is_measured(
    endpoint: Endpoint, answer: object, expected: Usage
) -> None:
    """By its text; of what has none nothing is made up."""
    tap = tapped(endpoint, JSON, [line(answer)])

    assert tap.usage() == Usage(expected.prompt, expected.completion, estimated=True)


@pytest.mark.parametrize("words", [100, 1000, 10_000])
@pytest.mark.parametrize("ended", [False, True], ids=["left", "broken"])
def test_half_an_answer_is_measured_by_its_size(words: int, ended: bool) -> None:
    """The count stands at its end: who leaves before that does not have all of it for nothing."""
    answer = line({"choices": [{"message": {"content": "word " * words}}], **counts(30, words)})
    had = answer[: answer.index(b'"usage"')]

    tap = tapped(CHAT, JSON, [had[:50], had[50:]], ended=ended)

    assert tap.usage() == Usage(PROMPT, len(had) // 4, estimated=True)


@pytest.mark.parametrize("bad", [-1, 10**12, 2**64, 1.5, "5", True, None, [5], {"a": 5}])
def test_a_count_that_makes_no_sense_is_none(bad: object) -> None:
    """Neither a refund nor a ruin comes of it: the answer is counted like one without."""
    usage = {"prompt_tokens": bad, "completion_tokens": bad, "total_tokens": bad}
    details = {"prompt_tokens_details": {"cached_tokens": bad}, "reasoning_tokens": bad}
    pieces = [chunk({"content": "a"}), event({"choices": [], "usage": {**usage, **details}}), DONE]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(PROMPT, 1, estimated=True)


def test_half_a_report_is_completed() -> None:
    """What is said holds, what is missing is estimated."""
    pieces = [chunk({"content": "a"}), event({"choices": [], "usage": {"completion_tokens": 7}})]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(PROMPT, 7, estimated=True)


def test_parts_are_never_more_than_the_whole() -> None:
    """A ledger subtracts them."""
    report = counts(
        *(10, 5),
        prompt_tokens_details={"cached_tokens": 11},
        completion_tokens_details={"reasoning_tokens": 6},
    )

    assert tapped(CHAT, JSON, [line(report)]).usage() == Usage(10, 5, cached=10, reasoning=5)


def test_a_count_that_the_caller_does_not_see_counts() -> None:
    """The chunk that was taken out on the way."""
    tap = tapped(CHAT, EVENTS, [b"".join(VLLM[:3])], ended=False)
    tap.usage()
    tap.report(VLLM[-2])

    assert tap.usage() == Usage(30, 5)


def test_a_broken_event_is_passed_over() -> None:
    """One bad line does not cost the count of the others."""
    pieces = [
        chunk({"content": "a"}),
        b'data: {"usage":{"x\n\n',
        event(counts(30, 5)),
        b"data: {\n\n",
    ]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(30, 5)
    assert tapped(CHAT, EVENTS, reversed(pieces)).usage() == Usage(30, 5)


def test_an_error_in_a_stream_is_paid_for_as_far_as_it_went() -> None:
    """The engine did work until then."""
    pieces = [chunk({"content": "a"}), event({"error": {"message": "out of memory"}})]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(PROMPT, 1, estimated=True)


@pytest.mark.parametrize("cut_at", [0, 20])
@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_answer_that_is_still_to_come_is_not_taken_for_an_empty_one(
    status: str, cut_at: int
) -> None:
    """What is made in the background is paid as it was reserved: nobody will see it being made."""
    answer = line({"id": "resp_1", "status": status, "output": [], "usage": None})

    assert tapped(RESPONSES, JSON, [answer[:cut_at], answer[cut_at:]]).usage() is None
    assert tapped(RESPONSES, JSON, [line({"status": "completed"})]).usage() is not None


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_refusal_costs_nothing(status: int) -> None:
    """There is no answer to pay for, whatever it says."""
    assert tapped(CHAT, JSON, [line(counts(30, 5))], status=status).usage() is None


def test_before_an_answer_nothing_is_known() -> None:
    """Neither of what was asked nor of what will come."""
    assert UsageTap(CHAT, ASKED).usage() is None


LEFT: dict[tuple[str, Charge], Usage] = {
    ("vllm", "counted"): Usage(PROMPT, 2, estimated=True),
    ("vllm", "reported"): Usage(0, 0),
    ("vllm", "none"): Usage(0, 0),
    ("anthropic", "counted"): Usage(30, 1, cached=16, estimated=True),
    ("anthropic", "reported"): Usage(30, 1, cached=16),
    ("anthropic", "none"): Usage(0, 0),
    ("vllm, every chunk", "reported"): Usage(30, 3),
    ("ollama", "counted"): Usage(PROMPT, 3, estimated=True),
}


@pytest.mark.parametrize(("name", "policy"), LEFT, ids=lambda each: str(each))
def test_a_stream_that_was_left(name: str, policy: Charge) -> None:
    """What is owed for it is the operator's decision."""
    endpoint, content_type, pieces, _ = REPORTED[name]

    tap = tapped(endpoint, content_type, pieces[:3], ended=False)

    assert not tap.finished
    assert tap.usage(policy) == LEFT[name, policy]


@pytest.mark.parametrize("ended", [False, True], ids=["left", "broken"])
@pytest.mark.parametrize("words", [0, 1, 500])
def test_how_an_answer_begins_is_no_count_of_it(words: int, ended: bool) -> None:
    """Who leaves just before the last event has had it all, and pays for what was streamed."""
    word = typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "and "})
    pieces = [*ANTHROPIC[:3], *[word] * words, typed("content_block_stop", index=0)]

    tap = tapped(MESSAGES, EVENTS, pieces, ended=ended)

    assert tap.usage() == Usage(30, max(1, words), cached=16, estimated=True)


@pytest.mark.parametrize("policy", ["counted", "reported", "none"])
@pytest.mark.parametrize("name", ["vllm", "anthropic", "responses", "ollama"])
def test_whoever_leaves_after_the_last_word_has_had_it_all(name: str, policy: Charge) -> None:
    """Most client libraries hang up there."""
    endpoint, content_type, pieces, expected = REPORTED[name]

    tap = tapped(endpoint, content_type, pieces, ended=False)

    assert tap.finished
    assert tap.usage(policy) == expected


def test_memory_is_bounded() -> None:
    """An event of 16 MiB passes; what was to be read in it is given up."""
    tap = tapped(CHAT, EVENTS, [], ended=False)
    pieces = [b'data: {"choices":[{"delta":{"content":"', *[b"x" * 65_536] * 256, b'"}}]}\n\n']
    for piece in [*pieces, *[b"x"] * 10_000, *[b"x" * LARGE_CHUNK] * 1000]:
        tap.note(piece)
        trace = tap._trace
        assert trace is not None
        kept = len(trace.head) + len(trace.tail) + sum(map(len, trace._parts))
        assert kept <= HEAD + TAIL + MOST_CHUNKS * LARGE_CHUNK

    assert tap.usage() == Usage(PROMPT, 1, estimated=True)


def test_a_long_answer_is_not_kept_until_somebody_asks() -> None:
    """Only a short one is."""
    tap = UsageTap(CHAT, ASKED)
    body = line({"choices": [{"message": {"content": "x" * 100_000}}], **counts(30, 5)})
    tap.complete(200, [(b"content-type", JSON)], body)

    assert tap._whole is None
    assert tap.usage() == Usage(30, 5)


def test_what_a_prompt_or_a_model_says_is_no_count() -> None:
    """Text is escaped in JSON: it cannot end a string, a line or an event."""
    evil = '"}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    pieces = [chunk({"content": evil}), chunk({"content": DONE.decode()}), *VLLM[2:]]

    assert tapped(CHAT, EVENTS, pieces).usage() == Usage(30, 5)
    assert tapped(CHAT, EVENTS, pieces[:2]).usage() == Usage(PROMPT, 2, estimated=True)


@given(st.lists(st.binary(max_size=60), max_size=50), st.sampled_from(sorted(REPORTED)))
def test_nothing_that_comes_is_too_odd(pieces: list[bytes], name: str) -> None:
    """Whatever a server sends, the request is counted and not broken."""
    endpoint, content_type, _, _ = REPORTED[name]

    used = tapped(endpoint, content_type, pieces).usage()

    assert used is not None
    assert used.prompt >= 0 and used.completion >= 0


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**13) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "usage",
                        "response",
                        "message",
                        "choices",
                        "delta",
                        "prompt_tokens",
                        "details",
                    ),
                    *("eval_count", "prompt_tokens_details", "cached_tokens", "content", "meta"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JUNK, max_size=4), st.sampled_from(sorted(REPORTED)))
def test_nor_any_json(values: list[object], name: str) -> None:
    """Every field may be of any type."""
    endpoint, content_type, _, _ = REPORTED[name]
    write = event if content_type == EVENTS else line

    used = tapped(endpoint, content_type, [write(value) for value in values]).usage()

    assert used is not None
    assert 0 <= used.cached <= used.prompt and 0 <= used.reasoning <= used.completion


def test_a_compressed_answer_is_measured_by_its_size() -> None:
    """It cannot be read."""
    tap = UsageTap(CHAT, ASKED)
    tap.begin(200, [(b"content-type", EVENTS), (b"content-encoding", b"gzip")])
    tap.note(b"\x1f\x8b" * 200)
    tap.end()

    assert tap.usage() == Usage(PROMPT, 100, estimated=True)
