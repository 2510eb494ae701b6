"""The chunk with the count is taken out of a stream, wherever the network cuts it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.protocol.usage_chunk import MOST_HELD, UsageChunk

USAGE = '"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}'
HEAD = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1731234567,"model":"m"'


def words(*texts: str, more: str = "") -> list[str]:
    return [
        f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"content":{json.dumps(text)}}},'
        f'"logprobs":null,"finish_reason":null}}]{more}}}'
        for text in texts
    ]


FINISH = f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}'
DONE = "data: [DONE]"

# What each of them sends when it is asked for the count; the extra one stands before [DONE].
STREAMS = {
    "vllm": (
        [*words("Hel", "lö", ' "usage":{ "choices":[]'), FINISH],
        f'data: {{{HEAD},"choices":[],{USAGE}}}',
    ),
    "sglang": (
        [*words("a", "b", more=',"usage":null'), FINISH],
        f'data: {{{HEAD},"choices":[],{USAGE[:-1]},"prompt_tokens_details":null}}}}',
    ),
    "llama.cpp": (
        [*words("a", "data: [DONE]\n\n"), FINISH],
        f'data: {{"choices":[],{HEAD},{USAGE},"timings":{{"prompt_n":5,"cache_n":0}}}}',
    ),
    "llama-cpp-python": (
        [": ping", *words("\u2028\u0085", "\r\n\r\n"), FINISH],
        f'data: {{"id": "1", "choices": [ ], "usage" : {USAGE.partition(":")[2]}}}',
    ),
    "openai": (
        [*words("a", "b", more=',"usage":null,"obfuscation":"xyz"'), FINISH],
        f'data: {{{HEAD},"service_tier":"default","choices":[],{USAGE},"obfuscation":""}}',
    ),
    "azure": (
        [
            f'data: {{{HEAD},"choices":[],"prompt_filter_results":[{{"prompt_index":0}}]}}',
            f'data: {{{HEAD},"choices":[],"usage":null}}',
            *words("a"),
            FINISH,
        ],
        f'id: 7\ndata:{{{HEAD},"choices":[],{USAGE}}}',
    ),
    "usage in every chunk": (
        [*words("a", "b", more=f",{USAGE}"), FINISH],
        f'data: {{{HEAD},\ndata:"choices":[],\ndata: {USAGE}}}',
    ),
    "an error instead": ([*words("a"), f'data: {{"error":{{}},"choices":[],{USAGE}}}'], ""),
}

ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def lines(events: list[str], end: str) -> bytes:
    return "".join(event.replace("\n", end) + end * 2 for event in events).encode()


def through(pieces: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Return what was passed on of a stream, and what was taken out of it."""
    taken: list[bytes] = []
    chunk = UsageChunk(taken.append)
    going = b"".join(chunk.passed(piece) for piece in pieces) + chunk.rest()
    return going, taken


every_stream = pytest.mark.parametrize("name", STREAMS)
every_end = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())


@every_stream
@every_end
@pytest.mark.parametrize("done", [[DONE], []], ids=["done", "cut_short"])
def test_every_cut_into_two(name: str, end: str, done: list[str]) -> None:
    """What goes on is the stream without the event, to the byte."""
    before, extra = STREAMS[name]
    head, tail = lines(before, end), lines(done, end)
    event = lines([extra], end) if extra else b""
    stream = head + event + tail

    for place in range(len(stream) + 1):
        going, taken = through([stream[:place], stream[place:]])
        assert going == head + tail, place
        assert [piece.rstrip(b"\r\n") for piece in taken] == [event.rstrip(b"\r\n")] * bool(extra)


@every_stream
@every_end
def test_byte_by_byte(name: str, end: str) -> None:
    """The hardest cut of all."""
    before, extra = STREAMS[name]
    stream = lines([*before, *([extra] if extra else []), DONE], end)

    going, taken = through([stream[place : place + 1] for place in range(len(stream))])

    assert going == lines([*before, DONE], end)
    assert len(taken) == bool(extra)


@given(st.data(), st.sampled_from(sorted(STREAMS)), st.sampled_from(sorted(ENDS)))
def test_any_cut(data: st.DataObject, name: str, end: str) -> None:
    """Many pieces of any size, and ends of lines that change from event to event."""
    before, extra = STREAMS[name]
    ends = st.sampled_from(sorted(ENDS.values()))
    rows = [lines([event], data.draw(ends)) for event in before]
    event = lines([extra], ENDS[end]) if extra else b""
    tail = lines([DONE], data.draw(ends))
    stream = b"".join(rows) + event + tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    going, _ = through(pieces)

    assert going == b"".join(rows) + tail


@given(st.lists(st.binary(max_size=40)))
def test_whatever_is_not_understood_is_passed_on(pieces: list[bytes]) -> None:
    """To the byte, and in order."""
    assert through(pieces) == (b"".join(pieces), [])


@every_end
def test_whole_events_are_the_very_object(end: str) -> None:
    """Nothing is copied where nothing is taken."""
    chunk = UsageChunk(lambda _: None)
    first, second = lines(words("a"), end), lines([*words("b", 'c"usage"'), FINISH], end)

    assert chunk.passed(first) is first
    assert chunk.passed(second) is second
    assert chunk.passed(b"") == b""


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(words("a")[0].partition('"delta"')[0], id="choices"),
        pytest.param("data: [D", id="no_object"),
        pytest.param('data: {"error":', id="error"),
        pytest.param("data: x" * MOST_HELD, id="too_long"),
        pytest.param('data: {"choices":[],"usage":{"x":"' + "x" * MOST_HELD, id="too_long_a_count"),
    ],
)
def test_what_cannot_be_the_chunk_is_not_held_back(begun: str) -> None:
    """It is decided as soon as it can be told; a piece may be an event that is still growing."""
    chunk = UsageChunk(lambda _: None)
    piece = begun.encode()

    assert chunk.passed(piece) is piece
    assert chunk.passed(b' of it"}]}') == b' of it"}]}'
    assert chunk.passed(b"\n") == b"\n"
    assert chunk.passed(b"\n") == b"\n"
    assert chunk.passed(b"data: {") == b""  # the next one may be it


def test_what_is_held_back_is_bounded() -> None:
    """However slowly an event grows."""
    chunk = UsageChunk(lambda _: None)
    sent, going = 0, 0
    for piece in [b'data: {"choices":[],"x":"', *[b"y" * 50] * 200]:
        sent += len(piece)
        going += len(chunk.passed(piece))
        assert sent - going <= MOST_HELD


def test_the_event_without_its_last_line_is_taken_too() -> None:
    """Some client libraries read the last event although no blank line follows."""
    _, extra = STREAMS["vllm"]

    assert through([lines([FINISH], "\n"), extra.encode()])[0] == lines([FINISH], "\n")
    assert through([b'data: {"choices":[],"us'])[0] == b'data: {"choices":[],"us'


def test_what_is_taken_can_be_read() -> None:
    """Whoever counts gets the whole event."""
    _, extra = STREAMS["vllm"]

    _, taken = through([lines([FINISH, extra, DONE], "\n")])

    match = re.fullmatch(rb"data: (.*)\n\n", taken[0])
    assert match is not None
    assert json.loads(match[1])["usage"]["total_tokens"] == 8
