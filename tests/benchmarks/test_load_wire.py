"""The check that decides whether a run of the load benchmark counts."""

from collections.abc import Callable

import pytest

from benchmarks.load import wire

NUMBER, CHUNKS, GAP_MS = 12345678, 4, 2
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FAR_APART = 10_000_000  # ns
Pieces = list[bytes]


def content(place: int, *, number: int = NUMBER, step: int = FAR_APART) -> bytes:
    return wire.framed(wire.CONTENT % (number, place, place * step))


def whole_stream(*, step: int = FAR_APART) -> Pieces:
    """What a stream looks like when each frame arrives in a read of its own."""
    chunks = [content(place, step=step) for place in range(CHUNKS)]
    return [HEAD, *chunks, wire.framed(wire.FINISH), wire.framed(wire.DONE), wire.LAST_CHUNK]


def check(pieces: Pieces) -> wire.StreamTimes:
    reads = [(1000 * place, piece) for place, piece in enumerate(pieces)]
    return wire.check_stream(reads, NUMBER, CHUNKS, GAP_MS)


def test_a_whole_stream_gives_both_times_of_each_chunk() -> None:
    """Departure is read from the chunk, arrival from the read that completed it."""
    times = check(whole_stream())

    assert times.sent == [0, FAR_APART, 2 * FAR_APART, 3 * FAR_APART]
    assert times.arrived == [1000, 2000, 3000, 4000]


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_how_the_bytes_are_cut_does_not_matter(size: int) -> None:
    """A proxy may merge and split reads as it likes."""
    everything = b"".join(whole_stream())

    times = check([everything[at : at + size] for at in range(0, len(everything), size)])

    assert len(times.arrived) == CHUNKS


def test_another_framing_of_the_same_events_is_right() -> None:
    """A proxy may take the chunked encoding off and let the end of the connection speak."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    events = [wire.CONTENT % (NUMBER, place, place * FAR_APART) for place in range(CHUNKS)]

    times = check([head, b": a comment\n\n", *events, wire.FINISH, wire.DONE])

    assert len(times.sent) == CHUNKS


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda s: [*s[:2], *s[3:]], id="a_chunk_is_lost"),
        pytest.param(lambda s: [*s[:2], s[1], *s[2:]], id="a_chunk_comes_twice"),
        pytest.param(lambda s: [s[0], s[2], s[1], *s[3:]], id="chunks_change_places"),
        pytest.param(lambda s: [*s[:2], content(1, number=7), *s[3:]], id="of_another_stream"),
        pytest.param(lambda s: s[:-1], id="the_framing_does_not_end"),
        pytest.param(lambda s: [*s[:-2], s[-1]], id="no_done"),
        pytest.param(lambda s: [*s[:-3], *s[-2:]], id="no_finish_reason"),
        pytest.param(lambda s: [*s, b"more"], id="bytes_after_the_end"),
        pytest.param(lambda s: [s[0].replace(b"200 OK", b"502 Bad"), *s[1:]], id="not_a_200"),
        pytest.param(lambda _: whole_stream(step=1_000_000), id="faster_than_the_script"),
        pytest.param(lambda _: [], id="silence"),
    ],
)
def test_a_spoilt_stream_is_refused(spoil: Callable[[Pieces], Pieces]) -> None:
    """Nothing may be missing, doubled, out of order, mixed up or faster than asked."""
    with pytest.raises(wire.WrongAnswerError):
        check(spoil(whole_stream()))


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_an_answer_is_complete_with_its_last_byte() -> None:
    """Counted or chunked, and not a byte earlier."""
    counted = response(wire.answer(NUMBER))
    chunked = HEAD + wire.framed(wire.answer(NUMBER)) + wire.LAST_CHUNK

    assert wire.is_complete(counted) and wire.is_complete(chunked)
    assert not wire.is_complete(counted[:-1]) and not wire.is_complete(chunked[:-1])


def test_an_answer_must_be_the_one_to_its_request() -> None:
    """A proxy that mixes up two callers is found out."""
    wire.check_answer(response(wire.answer(NUMBER)), NUMBER)

    with pytest.raises(wire.WrongAnswerError):
        wire.check_answer(response(wire.answer(NUMBER + 1)), NUMBER)


def test_the_template_of_a_frame_announces_its_true_length() -> None:
    """The model server fills a ready-made frame, so its size line must fit any filling."""
    filled = wire.content_frame() % (NUMBER, 99_999, 10**18 - 1)

    assert filled == wire.framed(wire.CONTENT % (NUMBER, 99_999, 10**18 - 1))
    assert 200 <= len(filled) <= 260
