"""An answer whose head was here before is read as it was then, and nothing else is taken for it."""

import asyncio
from typing import cast

import pytest
from httptools import HttpResponseParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.errors import UpstreamBroken
from llmproxy.transport.http1.answer_memory import LONGEST, MOST_IN_VAIN, AnswerMemory
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.interface import Outgoing

HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: a\r\n"
    b"Content-Length: %d\r\nX-A: b\r\n\r\n"
)
LATER = HEAD.replace(b"01 Jan 2026 00:00:00", b"02 Feb 2027 12:34:56")
PUT = (
    *(b"", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"0", b"9" * 20, b"-1", b"+", b"\0", b"2"),
    *(b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b"x", b"\xff", b"HTTP"),
    *(b"\r\n\r\n", b", 3", b"Connection: close\r\n", b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"),
)


class Socket(asyncio.Transport):
    """Takes whatever is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Owner:
    """A pool that only counts."""

    def __init__(self) -> None:
        self.returns = 0

    def returned(self, connection: Connection) -> None:
        self.returns += 1

    def lost(self, connection: Connection) -> None:
        """Nothing is kept here."""


class Reading:
    """A connection, and the answers that it has read."""

    def __init__(self, *before: bytes, forgetful: bool = False) -> None:
        self.owner = Owner()
        self.socket = Socket()
        self.connection = Connection("gpu1", self.owner, asyncio.get_running_loop())
        self.connection.connection_made(self.socket)
        if forgetful:
            self.connection._reader._memory._in_vain = MOST_IN_VAIN
        self.parsed = 0  # bytes that went to the parser
        self._parser = self.connection._reader._parser
        self.connection._reader._parser = cast("HttpResponseParser", self)
        for each in before:
            self.answered(each)

    def feed_data(self, data: bytes) -> None:
        self.parsed += len(data)
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._parser, name)

    def answered(self, data: bytes, cuts: list[int] | None = None) -> Http1Call:
        """Ask, and let this be the answer."""
        self.parsed = 0
        call = self.connection.ask(Outgoing(b"GET", b"/", []))
        at = 0
        for cut in [*sorted(cut % (len(data) + 1) for cut in cuts or ()), len(data)]:
            if data[at:cut]:
                self.connection.feed(data[at:cut])
            at = cut
        return call

    def seen(self, call: Http1Call) -> tuple[object, ...]:
        """All that an answer was taken for."""
        failure = call._failure
        return (
            *(call.status, call.headers, b"".join(call._chunks), call.complete),
            *(str(failure), self.owner.returns, self.socket.aborted, self.connection.answered),
        )


def answer(size: int, head: bytes = HEAD) -> bytes:
    return head % size + b"x" * size


def in_a_loop(judge: object) -> None:
    """Run what needs a loop to be there, and not to run."""

    async def run() -> None:
        assert callable(judge)
        judge()

    asyncio.run(run())


async def test_a_head_is_known_from_the_second_time_on() -> None:
    """Whatever its length and its date: neither the head nor the body goes to the parser."""
    reading = Reading(answer(3))
    for size, head in ((3, HEAD), (300, HEAD), (0, LATER), (7, HEAD)):
        call = reading.answered(answer(size, head))

        assert reading.parsed == 0
        assert (call.status, await call.read(1), call.over) == (200, b"x" * size, True)
        assert dict(call.headers)[b"content-length"] == b"%d" % size
        assert dict(call.headers)[b"date"] in head
    assert reading.owner.returns == 5


@settings(max_examples=100)
@given(size=st.integers(0, 2000), cuts=st.lists(st.integers(0, 4000), max_size=4))
@example(size=0, cuts=[])
@example(size=5, cuts=[len(HEAD)])
def test_it_is_read_as_if_for_the_first_time(size: int, cuts: list[int]) -> None:
    """Whatever the length of its body and however it is cut."""

    def judge() -> None:
        known, anew = Reading(answer(3)), Reading(answer(3), forgetful=True)
        data = answer(size, LATER)

        assert known.seen(known.answered(data, cuts)) == anew.seen(anew.answered(data, cuts))

    in_a_loop(judge)


@settings(max_examples=400)
@given(at=st.integers(0, len(HEAD) + 20), removed=st.integers(0, 6), put=st.sampled_from(PUT))
@example(at=HEAD.index(b"%d"), removed=1, put=b"9" * 18)
@example(at=HEAD.index(b"%d"), removed=1, put=b"0" * 19)
@example(at=HEAD.index(b"%d"), removed=1, put=b"9" * 20)
@example(at=HEAD.index(b"%d"), removed=0, put=b"+")
@example(at=HEAD.index(b"%d"), removed=1, put=b"-1")
@example(at=HEAD.index(b"%d"), removed=1, put=b"")
@example(at=HEAD.index(b"%d") - 1, removed=0, put=b"0")
@example(at=HEAD.index(b"GMT"), removed=3, put=b"\0")
@example(at=len(HEAD) + 2, removed=0, put=b"HTTP/1.1 200 OK\r\n\r\n")
@example(at=len(HEAD) + 2, removed=0, put=b"\r\n")
@example(at=len(HEAD) + 2, removed=0, put=b"\n\r\n")
@example(at=len(HEAD) + 2, removed=0, put=b"\rx")
def test_what_is_not_quite_it_is_judged_like_any_other(at: int, removed: int, put: bytes) -> None:
    """A near miss anywhere: taken or broken off exactly as where nothing is remembered."""

    def judge() -> None:
        data = answer(3)
        near = data[:at] + put + data[at + removed :]
        known, anew = Reading(answer(3)), Reading(answer(3), forgetful=True)
        after = known.seen(known.answered(near)), anew.seen(anew.answered(near))

        assert after[0] == after[1]

    in_a_loop(judge)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 103 E\r\nX-A: b\r\n\r\n" + HEAD, id="informational_before"),
        pytest.param(HEAD.replace(b"200 OK", b"103 E") % 3 + HEAD, id="informational_alike"),
        pytest.param(HEAD.replace(b"Length: ", b"Length:"), id="length_without_blank"),
        pytest.param(HEAD.replace(b"X-A: b", b"X-A: " + b"b" * LONGEST), id="long"),
        pytest.param(
            HEAD.replace(b"X-A: b", b"Date: Thu, 01 Jan 2026 00:00:00 GMT"), id="two_dates"
        ),
    ],
)
async def test_what_is_not_remembered(head: bytes) -> None:
    """Whatever is more than one head with one length, and what would take much memory."""
    reading = Reading(answer(3, head))
    data = answer(3, head)
    call = reading.answered(data)

    assert reading.parsed == len(data)
    assert call.complete


async def test_an_answer_behind_which_the_connection_closes_is_not_remembered() -> None:
    """There is no next one."""
    reading = Reading(answer(3, HEAD.replace(b"X-A: b", b"Connection: close")))

    assert reading.socket.aborted
    assert not reading.connection._reader._memory._varying


async def test_a_head_in_pieces_is_read_by_the_parser() -> None:
    """What is remembered came in one piece, and so must what is recalled."""
    reading = Reading(answer(3))
    call = reading.answered(answer(3), [40])

    assert reading.parsed == len(answer(3))
    assert call.complete


async def test_what_came_in_pieces_is_not_remembered() -> None:
    """Not even when the last piece was a whole head."""
    informational = b"HTTP/1.1 103 E\r\nX-A: b\r\n\r\n"
    reading = Reading()
    reading.answered(informational + answer(3), [len(informational)])
    reading.answered(answer(3))

    assert reading.parsed == len(answer(3))


@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nX-Y: ", b"\r\n", b"H", b"X"])
async def test_a_known_head_begins_an_answer_or_is_none(before: bytes) -> None:
    """In the middle of another head it is a part of that one."""
    known, anew = Reading(answer(3)), Reading(answer(3), forgetful=True)
    data, cuts = before + answer(3), [len(before)]

    assert known.seen(known.answered(data, cuts)) == anew.seen(anew.answered(data, cuts))


def test_a_head_with_odd_line_ends_is_not_remembered() -> None:
    """Our parser refuses them today; where such a head ends would not be known."""
    memory = AnswerMemory()
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx: y\n\n\r\n\r\n"
    memory.learn(raw, 200, [(b"content-length", b"4"), (b"x", b"y")])

    assert memory.recall(raw) is None


async def test_the_answer_to_head_has_no_body_however_long_it_says_to_be() -> None:
    """The same bytes mean another thing here."""
    reading = Reading(answer(3))
    call = reading.connection.ask(Outgoing(b"HEAD", b"/", []))
    reading.connection.feed(HEAD % 3)

    assert call.complete
    assert not call._chunks


async def test_what_is_behind_a_known_answer_ends_the_connection() -> None:
    """As behind any other: it is nobody's, and the next caller must not get it."""
    reading = Reading(answer(3))
    call = reading.answered(answer(3) + answer(4))

    assert await call.read(1) == b"xxx"
    assert call.over
    assert reading.socket.aborted


async def test_a_known_answer_that_breaks_off_is_broken() -> None:
    """Half of it is given out, and then the truth."""
    reading = Reading(answer(3))
    call = reading.answered(answer(30)[:-1])
    reading.connection.connection_lost(None)

    assert await call.read(1) == b"x" * 29
    with pytest.raises(UpstreamBroken):
        await call.read(1)


async def test_heads_that_never_come_again_are_soon_not_remembered() -> None:
    """Remembering costs time, too; one that comes again makes up for those before it."""
    heads = [HEAD.replace(b"X-A: b", b"X-A: %d" % number) for number in range(2 * MOST_IN_VAIN)]
    reading = Reading(*[answer(3, head) for head in heads])

    assert not reading.connection._reader._memory._varying

    reading = Reading(*[answer(3, head) for head in heads[:MOST_IN_VAIN]])
    reading.answered(answer(3, heads[MOST_IN_VAIN - 1]))

    assert reading.parsed == 0
    assert reading.connection._reader._memory._in_vain == 0
