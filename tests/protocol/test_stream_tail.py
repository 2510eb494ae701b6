"""Knowing how a stream ends from its last bytes, however those bytes were cut."""

import re
import sys
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.protocol.stream_tail import KEEP, Halt, StreamTail
from llmproxy.records import Ending

COMMENT = b": keep-alive\n\n"
LAST_WORD = b'data: {"error":{"message":"m"}}\n\n'

TOKEN = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
OLDER_ERROR = b'data: {"object":"error","message":"out of memory","code":500}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3}}\n\n'


def tail_of(pieces: Iterable[bytes], ending: Ending, *, counted: bool = False) -> StreamTail:
    tail = StreamTail(ending, counted=counted)
    for piece in pieces:
        tail.note(piece)
    return tail


def verdicts(tail: StreamTail) -> tuple[bool, list[bool], bool, bool, bytes]:
    halted = [tail.finished(halt) for halt in Halt]
    return tail.finished(), halted, tail.told_of_an_error(), tail.at_boundary(), tail.closing()


def events(stream: bytes) -> list[bytes]:
    """Read a stream as the standard for server-sent events says."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif not line.startswith(b":"):
            data.append(line)
    return found


# Pieces of real streams and of hostile ones; line ends of every kind between them.
FRAGMENTS = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b": ping", b"x", b"", b" "),
        *(b"data: ", b"data:", b"[DONE]", b"data: [DONE]", b"event: error", b"event:error"),
        *(b'{"error":', b'{"error": {"message":"m"}}', b'"finish_reason":null', b'"done":false'),
        *(
            b'"finish_reason": "stop"',
            b'"finish_reason":"length"',
            b'{"done": true}',
            b'"done":true',
        ),
        *(b'{"type":"message_stop"}', b'"type": "response.completed"', b'"type":"response.failed"'),
        *(
            TOKEN,
            STOP,
            DONE,
            ERROR,
            OLDER_ERROR,
            USAGE,
            "é".encode(),
            "\u2028\u0085".encode(),
            b"y" * 700,
        ),
    ]
)
STREAMS = st.lists(FRAGMENTS, max_size=30).map(b"".join)
ENDINGS = st.sampled_from(Ending)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(STREAMS)
    places = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=40)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@settings(max_examples=500)
@given(pieces=cut_streams(), ending=ENDINGS)
@example(pieces=[bytes([byte]) for byte in TOKEN + STOP + DONE], ending=Ending.CHAT)
@example(pieces=[b'{"done"', b":", b"true}\n"], ending=Ending.NDJSON)
def test_cuts_change_nothing(pieces: list[bytes], ending: Ending) -> None:
    """What is said of a stream depends on its bytes, not on how reads happened to split them."""
    whole = b"".join(pieces)

    assert verdicts(tail_of(pieces, ending)) == verdicts(tail_of([whole], ending))


@pytest.mark.parametrize(
    ("ending", "stream"),
    [
        pytest.param(Ending.CHAT, TOKEN * 40 + STOP + DONE, id="chat"),
        pytest.param(Ending.CHAT, (TOKEN + STOP).replace(b"\n", b"\r\n"), id="chat_crlf"),
        pytest.param(
            Ending.RESPONSES,
            b'event: response.completed\ndata: {"type":"response.completed","a":"%b"}\n\n'
            % (b"z" * 3000),
            id="responses",
        ),
        pytest.param(
            Ending.NDJSON,
            b'{"done":false}\n{"done" :\ttrue,"context":[%b]}\n' % (b"12345," * 600 + b"1"),
            id="ndjson",
        ),
    ],
)
def test_every_single_cut_is_harmless(ending: Ending, stream: bytes) -> None:
    """The same at each byte of whole streams, the cut inside each decisive word included."""
    expected = verdicts(tail_of([stream], ending))

    assert expected[0]
    for place in range(len(stream) + 1):
        cut = tail_of([stream[:place], stream[place:]], ending)
        assert verdicts(cut) == expected, place


@given(stream=STREAMS, place=st.integers(0, 400))
def test_a_comment_at_a_boundary_changes_no_event(stream: bytes, place: int) -> None:
    """Wherever a comment is said to be harmless, a reader sees the same events with it."""
    before, after = stream[:place], stream[place:]
    tail = tail_of([before], Ending.CHAT)

    if tail.at_boundary():
        assert events(before + COMMENT + after) == events(stream)


@given(stream=STREAMS)
def test_the_last_word_is_always_heard(stream: bytes) -> None:
    """After `closing`, an error event arrives as an event of its own, and none is lost."""
    tail = tail_of([stream], Ending.CHAT)

    heard = events(stream + tail.closing() + LAST_WORD)

    assert heard[-1] == LAST_WORD.strip()
    assert heard[: len(events(stream))] == events(stream)


@given(stream=st.lists(st.sampled_from([b"{}", b"\n", b'{"done":false}\n', b"x"])).map(b"".join))
def test_the_last_line_stands_alone(stream: bytes) -> None:
    """In NDJSON what is added after `closing` is a line of its own."""
    tail = tail_of([stream], Ending.NDJSON)

    lines = (stream + tail.closing() + b'{"error":{}}\n').split(b"\n")

    assert lines[-2:] == [b'{"error":{}}', b""]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(b"", True, id="nothing_yet"),
        pytest.param(b"data: a\n\n", True, id="lf"),
        pytest.param(b"data: a\r\n\r\n", True, id="crlf"),
        pytest.param(b"data: a\r\r", True, id="cr"),
        pytest.param(b"data: a\n\r\n", True, id="lf_then_crlf"),
        pytest.param(b"data: a\r\n\n", True, id="crlf_then_lf"),
        pytest.param(b"data: a", False, id="inside_a_line"),
        pytest.param(b"data: a\n", False, id="between_two_lines"),
        pytest.param(b"data: a\r\n", False, id="between_two_crlf_lines"),
        pytest.param(b"data: a\r\n\r", False, id="inside_the_last_crlf"),
        pytest.param(b"data: a\n\ndata: \xc3", False, id="inside_a_letter"),
    ],
)
def test_where_a_comment_may_go(end: bytes, expected: bool) -> None:
    """Between two events and nowhere else."""
    assert tail_of([end], Ending.CHAT).at_boundary() is expected


def test_ndjson_has_no_place_for_a_comment() -> None:
    """A line that is not JSON would break its reader."""
    assert not tail_of([b'{"done":false}\n'], Ending.NDJSON).at_boundary()
    assert not tail_of([], Ending.NDJSON).at_boundary()


@pytest.mark.parametrize(
    ("ending", "stream", "expected"),
    [
        pytest.param(Ending.CHAT, b"", False, id="nothing"),
        pytest.param(Ending.CHAT, TOKEN, False, id="chat_in_the_middle"),
        pytest.param(Ending.CHAT, TOKEN + STOP, True, id="chat_finish_reason"),
        pytest.param(Ending.CHAT, TOKEN + DONE, True, id="chat_done"),
        pytest.param(Ending.CHAT, b"data:[DONE]\r\n\r\n", True, id="chat_done_without_space"),
        pytest.param(Ending.CHAT, DONE[:-2], True, id="chat_done_without_blank_line"),
        pytest.param(
            Ending.CHAT,
            b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n\\n"}}]}\n\n',
            False,
            id="chat_done_as_text",
        ),
        pytest.param(
            Ending.CHAT,
            b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\": \\"stop\\""}}]}\n\n',
            False,
            id="chat_finish_reason_as_text",
        ),
        pytest.param(
            Ending.MESSAGES,
            b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
            True,
            id="messages",
        ),
        pytest.param(
            Ending.MESSAGES,
            b'event: message_stop\ndata: {"type": "message_stop"}',
            True,
            id="messages_without_a_blank_line",
        ),
        pytest.param(
            Ending.MESSAGES,
            b'event: message_stop\ndata: {"type": "message_stop"',
            False,
            id="messages_cut",
        ),
        pytest.param(
            Ending.MESSAGES,
            b'data: {"type": "message_stop"}\n\nevent: ping\ndata: {"type": "ping"}\n',
            True,
            id="messages_with_something_else_behind",
        ),
        pytest.param(Ending.CHAT, TOKEN + STOP + USAGE[:-2], True, id="chat_count_not_closed"),
        pytest.param(Ending.CHAT, TOKEN + STOP + USAGE[:-3], False, id="chat_count_cut"),
        pytest.param(Ending.CHAT, TOKEN + STOP[:-2], False, id="chat_finish_reason_not_closed"),
        pytest.param(
            Ending.CHAT,
            TOKEN + STOP[:-1] + b"data: {}",
            False,
            id="chat_finish_reason_in_the_same_event",
        ),
        pytest.param(
            Ending.RESPONSES,
            b'data: {"type":"response.completed"}',
            False,
            id="responses_without_a_blank_line",
        ),
        pytest.param(
            Ending.MESSAGES,
            b'event: message_delta\ndata: {"type":"message_delta"}\n\n',
            False,
            id="messages_in_the_middle",
        ),
        pytest.param(
            Ending.RESPONSES,
            b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
            True,
            id="responses_completed",
        ),
        pytest.param(
            Ending.RESPONSES, b'data: {"type":"response.failed"}\n\n', True, id="responses_failed"
        ),
        pytest.param(
            Ending.RESPONSES,
            b'data: {"type":"response.output_text.delta"}\n\n',
            False,
            id="responses_in_the_middle",
        ),
        pytest.param(Ending.NDJSON, b'{"done":false}\n', False, id="ndjson_in_the_middle"),
        pytest.param(Ending.NDJSON, b'{"done":false}\n{"done":true}\n', True, id="ndjson"),
        pytest.param(
            Ending.NDJSON, b'{"done":false}\n{"done":true}', True, id="ndjson_without_a_newline"
        ),
        pytest.param(
            Ending.NDJSON, b'{"response":"\\"done\\":true"}\n', False, id="ndjson_as_text"
        ),
        pytest.param(Ending.UNKNOWN, b"anything", True, id="unknown_is_mirrored"),
    ],
)
def test_what_is_finished(ending: Ending, stream: bytes, expected: bool) -> None:
    """A stream is finished when its protocol says so; text of the model cannot say it."""
    assert tail_of([stream], ending).finished() is expected


def test_text_where_the_kept_bytes_begin_says_nothing() -> None:
    """The model's `data: [DONE]` is text, also where the bytes that are kept begin with it."""
    text = b"data: [DONE]"
    rest = b'a"},"finish_reason":null}]}\n\n'
    stream = (
        b'data: {"choices":[{"delta":{"content":"'
        + text
        + b"b" * (KEEP - len(text) - len(rest))
        + rest
    )

    assert stream[-KEEP:].startswith(text)
    assert not tail_of([stream], Ending.CHAT).finished()


@pytest.mark.parametrize(
    ("stream", "at_the_end", "in_silence", "at_a_break"),
    [
        pytest.param(TOKEN, False, False, False, id="nothing"),
        pytest.param(TOKEN + STOP, True, False, False, id="no_count"),
        pytest.param(TOKEN + STOP + USAGE, True, True, True, id="the_count"),
        pytest.param(TOKEN + STOP + USAGE[:-1], True, False, False, id="no_empty_line"),
        pytest.param(TOKEN + STOP + USAGE[:-2], True, False, False, id="no_end_of_its_line"),
        pytest.param(TOKEN + STOP + USAGE[:-3], False, False, False, id="half_the_count"),
        pytest.param(TOKEN + STOP + DONE, True, True, True, id="done"),
        pytest.param(TOKEN + DONE, True, True, False, id="done_alone"),
        pytest.param(
            TOKEN + STOP.replace(b"]}", b'],"usage":{"total_tokens":4}}'),
            *(True, True, True),
            id="the_count_in_the_last_word",
        ),
        pytest.param(
            TOKEN.replace(b"]}", b'],"usage":{"total_tokens":1}}')
            + STOP.replace(b"]}", b'],"usage":null}'),
            *(True, False, False),
            id="a_count_so_far",
        ),
    ],
)
def test_a_count_that_was_asked_for_belongs_to_the_answer(
    stream: bytes, at_the_end: bool, in_silence: bool, at_a_break: bool
) -> None:
    """Only an engine that ends properly may leave it out; nobody else is asked for it."""
    asked_for = tail_of([stream], Ending.CHAT, counted=True)
    halted = [asked_for.finished(halt) for halt in (Halt.END, Halt.SILENCE, Halt.BREAK)]

    assert halted == [at_the_end, in_silence, at_a_break]
    assert tail_of([TOKEN, STOP], Ending.CHAT).finished(Halt.BREAK)


@pytest.mark.parametrize("error", [ERROR, OLDER_ERROR, b"event: error\ndata: {}\n\n"])
@pytest.mark.parametrize("halt", Halt, ids=lambda halt: halt.name)
def test_an_error_is_no_success_whatever_follows(error: bytes, halt: Halt) -> None:
    """Neither a finish before it nor `[DONE]` behind it makes the answer a whole one."""
    for rest in (b"", DONE, STOP, STOP + DONE, USAGE + DONE, COMMENT):
        assert not tail_of([TOKEN, STOP, error, rest], Ending.CHAT).finished(halt)


WHOLE_PIECES = st.lists(st.sampled_from([TOKEN, STOP, DONE, COMMENT, USAGE]), max_size=4)


@given(
    before=WHOLE_PIECES.map(b"".join),
    error=st.sampled_from([ERROR, OLDER_ERROR]),
    behind=WHOLE_PIECES.map(b"".join),
    data=st.data(),
)
def test_behind_an_error_nothing_is_passed_on(
    before: bytes, error: bytes, behind: bytes, data: st.DataObject
) -> None:
    """Of the chunk that is looked at goes on what ends with the error, wherever it was cut."""
    stream = before + error + behind
    place = data.draw(st.integers(0, len(stream)))
    end = len(before) + len(error)
    tail = tail_of([stream[:place]], Ending.CHAT)

    assert tail.before_the_end(stream[place:]) == stream[place : max(place, end)]


@given(stream=WHOLE_PIECES.map(b"".join))
def test_without_an_error_everything_is_passed_on(stream: bytes) -> None:
    """As the very object."""
    assert tail_of([TOKEN], Ending.CHAT).before_the_end(stream) is stream


def test_an_error_in_a_large_chunk() -> None:
    """What a fast engine sends in one go is looked at by its end, like everything else."""
    many = TOKEN * (2 * KEEP // len(TOKEN))

    assert tail_of([ERROR], Ending.CHAT).before_the_end(many + ERROR + DONE) == many + ERROR


def test_the_argument_of_a_tool_is_not_the_end() -> None:
    """A tool that is called with `done: true` says nothing about the stream."""
    call = b'{"message":{"tool_calls":[{"function":{"name":"tick","arguments":{"done":true}}}]},'

    assert not tail_of([call + b'"done":false}\n'], Ending.NDJSON).finished()
    assert tail_of([call + b'"done":true}\n'], Ending.NDJSON).finished()


@pytest.mark.parametrize(
    ("ending", "stream", "expected"),
    [
        pytest.param(Ending.CHAT, TOKEN, False, id="token"),
        pytest.param(Ending.CHAT, TOKEN + ERROR, True, id="data_event"),
        pytest.param(Ending.CHAT, TOKEN + ERROR[:-2], True, id="unfinished_event"),
        pytest.param(
            Ending.CHAT, (TOKEN + ERROR).replace(b"\n", b"\r\n"), True, id="data_event_crlf"
        ),
        pytest.param(Ending.CHAT, ERROR + TOKEN, False, id="not_the_last"),
        pytest.param(
            Ending.CHAT,
            TOKEN.replace(b"{", b'{"error":null,', 1),
            False,
            id="an_error_that_is_none",
        ),
        pytest.param(Ending.CHAT, OLDER_ERROR, False, id="a_form_that_no_client_knows"),
        pytest.param(
            Ending.MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
            True,
            id="named_event",
        ),
        pytest.param(
            Ending.CHAT,
            b'data: {"choices":[{"delta":{"content":"data: {\\"error\\":"}}]}\n\n',
            False,
            id="as_text",
        ),
        pytest.param(Ending.NDJSON, b'{"done":false}\n{"error":"oom"}\n', True, id="ndjson"),
        pytest.param(Ending.NDJSON, b'{"error":"oom"}', True, id="ndjson_without_newline"),
        pytest.param(Ending.NDJSON, b'{"error":"x"}\n{"done":false}\n', False, id="ndjson_earlier"),
    ],
)
def test_whose_error_it_was(ending: Ending, stream: bytes, expected: bool) -> None:
    """An engine that has told its reader of an error is not contradicted by a second one."""
    assert tail_of([stream], ending).told_of_an_error() is expected


@pytest.mark.parametrize("ending", Ending, ids=lambda ending: ending.value)
@pytest.mark.parametrize("size", [1, 100, 4096, 1 << 24], ids=lambda size: f"cut_{size}")
def test_what_is_kept_is_bounded(ending: Ending, size: int) -> None:
    """An event of 16 MiB leaves as little behind as a short one."""
    length = min(1 << 24, size * 20_000)
    tail = StreamTail(ending)
    for _ in range(length // size):
        tail.note(b"x" * size)

    assert len(tail.last(1 << 30)) <= 10 * KEEP


def test_a_large_chunk_is_let_go() -> None:
    """The bytes of a large chunk are not held by the few that are kept of it."""
    chunk = b"x" * (1 << 20)
    held = sys.getrefcount(chunk)
    tail = StreamTail(Ending.CHAT)

    tail.note(chunk)

    assert sys.getrefcount(chunk) == held
    assert tail.last(KEEP) == chunk[-KEEP:]
