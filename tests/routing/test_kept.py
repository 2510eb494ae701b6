"""What is kept of a stream, and what is held back of it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.routing.kept import MOST, MOST_HELD, KeptStream, Room

EVENTS = [
    b'data: {"a":1}\n\n',
    b": ping\n\n",
    b'data: {"b":"\xc3\xa4"}\r\n\r\n',
    b"data: [DONE]\n\n",
]
STREAM = b"".join(EVENTS)


def test_a_chunk_of_whole_events_passes_as_it_is() -> None:
    """The very object, so that nothing is copied."""
    kept = KeptStream(Room())
    chunk = b"".join([EVENTS[0], EVENTS[1]])

    assert kept.through(chunk) is chunk
    assert kept.delivered() == chunk


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_wherever_it_is_cut_the_bytes_are_the_same(cuts: set[int]) -> None:
    """Events come out whole, and all of them."""
    kept = KeptStream(Room())
    edges = [0, *sorted(cuts), len(STREAM)]
    passed = [kept.through(STREAM[a:b]) for a, b in itertools.pairwise(edges)]

    assert b"".join(passed) + kept.rest() == STREAM
    for piece in passed:
        assert not piece or piece.endswith((b"\n\n", b"\r\n\r\n"))


def test_half_an_event_is_not_among_what_was_delivered() -> None:
    """The caller does not have it, so nobody has to finish it."""
    kept = KeptStream(Room())

    assert kept.through(EVENTS[0] + b'data: {"half') == EVENTS[0]
    assert kept.delivered() == EVENTS[0]
    kept.begin_again()
    assert kept.rest() == b""


def test_a_very_long_event_is_passed_on_and_cannot_be_rescued() -> None:
    """Holding back has a bound."""
    kept = KeptStream(Room())
    long = b"data: " + b"x" * MOST_HELD

    assert kept.through(long) == long
    assert not kept.whole


def test_the_bound_of_one_stream() -> None:
    """What is over it passes, and the room is given back."""
    room = Room()
    kept = KeptStream(room)
    chunk = b"data: " + b"x" * 1000 + b"\n\n"
    for _ in range(MOST // len(chunk) + 1):
        assert kept.through(chunk) is chunk

    assert not kept.whole
    assert room.used == 0


def test_no_room_is_taken_ahead_while_half_an_event_is_held() -> None:
    """Whoever puts in what needs no asking is to ask then; and none of the room is lost."""
    room = Room()
    kept = KeptStream(room)
    kept.through(EVENTS[0])
    assert kept.left > 0

    kept.through(EVENTS[0] + b'data: {"half')
    assert kept.left == 0
    assert room.used == 2 * len(EVENTS[0])
    kept.through(b'":1}\n\n')
    assert kept.left > 0
    kept.close()
    assert room.used == 0


def test_the_bound_of_all_streams() -> None:
    """One that finds no room does without."""
    room = Room(most=100)
    first, second = KeptStream(room), KeptStream(room)
    first.through(b"data: " + b"x" * 80 + b"\n\n")

    assert second.through(EVENTS[0] * 3) == EVENTS[0] * 3
    assert first.whole and not second.whole
    first.close()
    assert room.used == 0


def test_an_event_that_tells_of_a_failure_is_not_given_out() -> None:
    """What came before it is; a text that speaks of errors is no failure."""
    talk = b'data: {"choices":[{"delta":{"content":"\\"error\\": {}"}}]}\n\n'
    for failure in (
        b'data: {"error": {"message": "out of memory"}}',
        b'event: error\ndata: {"error": "overloaded"}',
        b'data: {"object":"error","message":"out of memory"}',
    ):
        for data in (
            talk + failure + b"\n\ndata: [DONE]\n\n",
            talk + failure + b"\n\n",
            talk + failure + b"\n\ndata: {",
        ):
            kept = KeptStream(Room())
            assert kept.through(data) == talk
            assert kept.failed == failure + b"\n\n"
            assert kept.delivered() == talk
    kept = KeptStream(Room())
    assert kept.through(talk) == talk
    assert not kept.failed
