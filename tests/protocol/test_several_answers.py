"""Counting the answers of a stream that are finished, however its bytes were cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.protocol.several_answers import MOST_ANSWERS, MOST_LINE, SeveralAnswers
from llmproxy.protocol.stream_tail import KEEP, Halt

DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
HALTS = pytest.mark.parametrize("halt", Halt, ids=lambda halt: halt.name)


def said(*choices: tuple[int, str | None], **more: object) -> bytes:
    """Return an event with choices in it: of each the index and why it is finished."""
    values = [
        {"index": index, "delta": {"content": "a"}, "finish_reason": reason}
        for index, reason in choices
    ]
    return b"data: %b\n\n" % json.dumps({"choices": values, **more}).encode()


def tail_of(*pieces: bytes, expected: int = 2, counted: bool = False) -> SeveralAnswers:
    tail = SeveralAnswers(expected, counted=counted)
    for piece in pieces:
        tail.note(piece)
    return tail


BEGUN = said((0, None)) + said((1, None))
HALF = BEGUN + said((1, "stop")) + said((0, None))
WHOLE = HALF + said((0, "length"))


@HALTS
def test_one_of_two_is_never_the_whole(halt: Halt) -> None:
    """While one answer is in mid-text the stream is not finished, whatever ended it."""
    assert not tail_of(BEGUN).finished(halt)
    assert not tail_of(HALF).finished(halt)


@HALTS
def test_two_of_two_are_the_whole(halt: Halt) -> None:
    """Once each has said so, whatever ends it."""
    assert tail_of(WHOLE).finished(halt)


@HALTS
def test_one_that_says_so_twice_is_one(halt: Halt) -> None:
    """It is the answers that are counted, not their last words."""
    assert not tail_of(HALF, said((1, "stop"))).finished(halt)


@HALTS
def test_answers_may_share_an_event(halt: Halt) -> None:
    """Their last words may come together."""
    assert tail_of(BEGUN, said((0, "stop"), (1, "stop"))).finished(halt)
    assert not tail_of(BEGUN, said((0, "stop"), (1, None))).finished(halt)


@pytest.mark.parametrize(
    ("halt", "enough"),
    [(Halt.END, True), (Halt.SILENCE, False), (Halt.BREAK, False)],
    ids=lambda each: str(each),
)
def test_an_answer_that_never_began(halt: Halt, enough: bool) -> None:
    """An engine that knows no `n` ends properly; one that breaks might have begun the other."""
    assert tail_of(said((0, None)), said((0, "stop"))).finished(halt) is enough


@pytest.mark.parametrize(
    ("halt", "enough"),
    [(Halt.END, True), (Halt.SILENCE, True), (Halt.BREAK, False)],
    ids=lambda each: str(each),
)
def test_done_counts_where_nothing_broke(halt: Halt, enough: bool) -> None:
    """As it does for one answer."""
    assert tail_of(HALF, DONE).finished(halt) is enough
    assert tail_of(WHOLE, DONE).finished(halt)


def test_more_answers_than_were_asked_for() -> None:
    """What has begun has to be finished, also where it is one too many."""
    assert not tail_of(WHOLE, said((2, None))).finished(Halt.BREAK)


def test_a_reason_that_is_none() -> None:
    """Some engines write an empty one into each event."""
    assert not tail_of(said((0, "")), said((1, ""))).finished()


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"\\"finish_reason\\":\\"stop\\""}}]}\n\n',
        b'data: {"choices":[{"index":0}],"x":{"choices":[{"index":0,"finish_reason":"s"}]}}\n\n',
        b'data: {"choices":[{"index":-1,"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"index":true,"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"index":%d,"finish_reason":"stop"}]}\n\n' % MOST_ANSWERS,
        b'data: {"choices":[{"index":18446744073709551616,"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":{"index":0,"finish_reason":"stop"}}\n\n',
        b'data: {"choices":["finish_reason",7,null]}\n\n',
        b'data: ["choices"]\n\n',
        b'data: {"choices":[{"index":0,"finish_reason":"stop"}]\n\n',
        b': {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n',
        b"data: \xff\xfe\n\n",
        b"data:\n\n",
    ],
)
def test_what_says_nothing_of_an_end(event: bytes) -> None:
    """Only a choice of an event can finish, and only a choice that there could be."""
    assert not tail_of(said((0, None)), said((1, "stop")), event).finished()


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_every_single_cut_is_harmless(blank: bytes) -> None:
    """At each byte of a stream, with each kind of line end."""
    stream = WHOLE.replace(b"\n\n", blank)
    last = stream.rindex(b"data:")

    for place in range(len(stream) + 1):
        before = tail_of(stream[:place])
        if place <= last:
            assert not before.finished(Halt.BREAK), place
        before.note(stream[place:])
        assert before.finished(Halt.BREAK), place


SAID = st.tuples(st.integers(0, 3), st.sampled_from([None, "stop", "length"])).map(said)
EVENTS = st.lists(
    st.one_of(
        SAID,
        st.tuples(SAID, st.sampled_from([b"\r\n", b"\r"])).map(
            lambda it: it[0].replace(b"\n", it[1])
        ),
        SAID.map(lambda event: event[:-1]),
        st.sampled_from(
            [b": ping\n\n", b"\n", b"\r\n", b"data: x\n\n", b'data: {"choices":[]}\n\n']
        ),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(events=EVENTS, data=st.data())
def test_cuts_change_nothing(events: list[bytes], data: st.DataObject) -> None:
    """What is counted depends on the bytes, not on how reads happened to split them."""
    stream = b"".join(events)
    places = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    expected = data.draw(st.integers(2, 4))

    cut, whole = tail_of(*pieces, expected=expected), tail_of(stream, expected=expected)

    assert [cut.finished(halt) for halt in Halt] == [whole.finished(halt) for halt in Halt]


@settings(max_examples=300)
@given(
    said_of=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, None, "stop"])), max_size=12
    ),
    expected=st.integers(2, 4),
)
def test_what_is_counted_is_what_a_reader_sees(
    said_of: list[tuple[int, str | None]], expected: int
) -> None:
    """A model of the rule: sets of the answers that began, and of those that finished."""
    begun = {index for index, _ in said_of}
    finished = {index for index, reason in said_of if reason}
    tail = tail_of(*(said(each) for each in said_of), expected=expected)

    assert tail.finished(Halt.END) == (bool(finished) and begun == finished)
    for halt in (Halt.SILENCE, Halt.BREAK):
        assert tail.finished(halt) == (begun == finished and len(finished) >= expected)


@pytest.mark.parametrize("blank", [b"", b"\n", b"\r\n"])
def test_an_event_without_its_empty_line_has_finished_nothing(blank: bytes) -> None:
    """Nobody reads it; behind what was finished before it may stand as it is."""
    last = said((1, "stop")).rstrip() + blank
    both = tail_of(WHOLE, USAGE.rstrip() + blank)

    assert not tail_of(BEGUN, said((0, "stop")), last).finished()
    assert both.finished()
    assert not both.finished(Halt.BREAK)


def test_an_end_of_line_that_is_cut_is_no_empty_line() -> None:
    """CR and LF of one line may come in two reads."""
    last = said((1, "stop")).rstrip() + b"\r"

    assert not tail_of(BEGUN, said((0, "stop")), last, b"\n").finished()
    assert tail_of(BEGUN, said((0, "stop")), last, b"\n", b"\r", b"\n").finished()


def test_a_count_that_was_asked_for_is_waited_for() -> None:
    """As for one answer: all of them finished, and the count not there."""

    assert not tail_of(WHOLE, counted=True).finished(Halt.BREAK)
    assert tail_of(WHOLE, USAGE, counted=True).finished(Halt.BREAK)
    assert tail_of(WHOLE, counted=True).finished(Halt.END)


def test_what_is_forgotten_is_not_counted() -> None:
    """Nothing of it went to the client."""
    tail = tail_of(said((0, "stop")), b"data: {")
    tail.forget()
    tail.note(said((1, "stop")))

    assert not tail.finished(Halt.BREAK)
    tail.note(said((0, "stop")))
    assert tail.finished(Halt.BREAK)


@pytest.mark.parametrize("size", [1, 100, 4096, 1 << 22], ids=lambda size: f"cut_{size}")
def test_what_is_kept_is_bounded(size: int) -> None:
    """A line that never ends is let go of; the one behind it is read again."""
    tail = SeveralAnswers(2)
    for _ in range(min(1 << 22, size * 100_000) // size):
        tail.note(b"x" * size)

    assert len(tail._line) <= MOST_LINE
    assert len(tail.last(1 << 30)) <= 10 * KEEP
    tail.note(b"\n\n" + WHOLE)
    assert tail.finished(Halt.BREAK)


def test_a_line_that_is_too_long_has_said_nothing() -> None:
    """Its answer is not counted, so that a break behind it is an error."""
    last = said((0, "stop"), padding="y" * MOST_LINE)

    assert not tail_of(HALF, last[:9], last[9:]).finished(Halt.BREAK)
