"""Events that are counted only are not missed by whoever asks what was used."""

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.protocol.endpoints import UNDERSTOOD
from llmproxy.protocol.usage_chunk import end_of_answers
from llmproxy.protocol.usage_tap import UsageTap
from llmproxy.protocol.usage_trace import LARGE_CHUNK, Trace
from llmproxy.records import InferenceRequest, Usage

MARK = b'"choices"'
EVENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
EMPTY = EVENT.replace(b'"a"', b'""')
LAST = EVENT.replace(b'{"content":"a"}', b"{}").replace(b"null", b'"stop"')
END = b"}]}\n\n"
DONE = b"data: [DONE]\n\n"


def usual(end: bytes = END) -> Trace:
    trace = Trace(MARK)
    trace.usual = end
    return trace


def test_one_usual_event_is_counted() -> None:
    """It is what nearly every piece is."""
    trace = usual()

    assert trace.counts(EVENT) and trace.counts(LAST)
    assert trace.count == 2
    assert trace.tail.endswith(LAST)


def test_everything_else_is_to_be_noted() -> None:
    """What is more or less than one event, or ends otherwise; at first, that is all."""
    trace = usual()
    others = [
        b"",
        EVENT * 2,
        EVENT.replace(b"\n\n", b"\r\r") + EVENT,
        b"event: x\n" + EVENT,
        EVENT[:-1],
        DONE,
    ]

    assert not any(trace.counts(piece) for piece in others)
    assert not Trace(MARK).counts(EVENT)
    assert trace.count == 0


@given(st.lists(st.sampled_from([EVENT, EMPTY, EVENT * 2, EVENT + DONE]), max_size=120))
def test_whether_an_event_is_noted_makes_no_difference(pieces: list[bytes]) -> None:
    """Neither to the count nor to what stands at the end, asked at any time."""
    some, all_of_them = usual(), Trace(MARK)
    for number, piece in enumerate([*pieces, LAST]):
        if not some.counts(piece):
            some.recall()
            some.note(piece)
        all_of_them.note(piece)
        if number % 7 == 0:
            assert some.count == all_of_them.count

    assert some.count == all_of_them.count
    assert all_of_them.tail.endswith(some.tail[-len(LAST) :])


def test_a_stream_of_counted_events_is_estimated_and_finished_as_ever() -> None:
    """The last of them carries nothing, and says that it is the last."""
    tap = UsageTap(UNDERSTOOD[b"/v1/chat/completions"], InferenceRequest(prompt_bytes=400))
    trace = tap.watch()
    assert tap.begin(200, [(b"content-type", b"text/event-stream")]) is None  # nobody else tells
    trace.note(EMPTY)
    trace.usual = END
    for _ in range(500):
        assert trace.counts(EVENT)

    assert not tap.finished
    assert tap.usage("none") == Usage()
    assert trace.counts(LAST)
    assert tap.finished
    assert tap.tokens_so_far == 502
    assert tap.usage("none") == Usage(100, 500, estimated=True)


def test_of_counted_events_one_is_kept() -> None:
    """However many pass."""
    trace = usual()
    for _ in range(10_000):
        trace.counts(EVENT)

    assert trace.size == 0 and not trace._parts and trace.latest is EVENT
    trace.note(b"x" * (LARGE_CHUNK + 1))
    assert trace.count == 10_000


def test_what_an_answer_ends_with_is_not_what_a_count_ends_with() -> None:
    """Only an end that tells the two apart is one to go by."""
    assert end_of_answers(EVENT) == END
    assert end_of_answers(EVENT[:-3] + b',"usage":null}\n\n') == b'"usage":null}\n\n'
    assert end_of_answers(b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n') == b""
    assert end_of_answers(b'data: {"usage":{"prompt_tokens":1},"choices":[]}\n\n') == b""
    assert end_of_answers(EVENT.replace(b"\n", b"\r\n")) == b""
    assert end_of_answers(DONE) == b""
