"""A head that comes in pieces is judged as if it had come at once, and is not kept twice."""

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmproxy.server.bounds import Bounds
from llmproxy.server.head_memory import HeadMemory
from llmproxy.server.head_rules import Head, condensed
from llmproxy.server.request_reader import KEPT, RequestReader

BOUNDS = Bounds()
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
LONG = b"x-long: " + b"y" * 3000 + b"\r\n"
FIELDS = [
    b"Host: x\r\n",
    b"Host: x\t\r\n",
    b"host:\tx\r\n",
    b"Content-Length: 3\r\n",
    b"content-length:\t3\r\n",
    b"Transfer-Encoding: chunked\t\r\n",
    b"x-tab: a\tb\r\n",
    b"x: \t" + b"y" * 3000 + b"\r\n",
    b"x-host: " + b"y" * 50 + b"host:\t\r\n",
    LONG,
]
# Its last line ends at a place where it may be cut; the body looks like a field that is refused.
CLOSING = b"Content-Length: 8\r\n" + LONG + b"\r\n\nhost:\tx"


class Begun(NamedTuple):
    """A request that nobody answers."""

    head: Head
    method: bytes


class Taken:
    """Notes the request that is begun."""

    def __init__(self) -> None:
        self.begun: list[Begun] = []
        self.body = b""
        self.body_complete = False
        self.keep_alive = True

    def begin(self, head: Head, method: bytes, memory: HeadMemory | None = None) -> "Taken":
        self.begun.append(Begun(head, method))
        return self

    def feed(self, body: bytes) -> None:
        self.body += body

    def end_body(self) -> None:
        self.body_complete = True


def read(pieces: list[bytes]) -> tuple[list[Begun], tuple[int, str] | None, int]:
    """Return what was begun, how it was refused, and the most that was kept of the raw head."""
    taken = Taken()
    reader = RequestReader(taken, BOUNDS)
    reader.begin_head()
    kept = 0
    for piece in pieces:
        refused = reader.feed(piece)
        kept = max(kept, len(reader._raw))
        if refused is not None:
            return [], (refused.status, refused.message), kept
    return taken.begun, None, kept


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(raw) for place in places} - {0}), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


heads = st.builds(
    lambda empty, fields: empty + LINE + b"".join(fields) + b"\r\n",
    st.sampled_from([b"", b"\r\n"]),
    st.lists(st.sampled_from(FIELDS), max_size=14),
)


@given(heads, st.lists(st.integers(0, 50_000), max_size=12))
@example(LINE + b"host:\tx\r\n" + LONG + b"x: y\r\n\r\n", [3000])  # in a line that was complete
@example(
    LINE + LONG + b"host: " + b"y" * 40 + b"\t" + b"z" * 90 + b"\r\n\r\n", [3160]
)  # in one that was not
@example(LINE + b"x: \t\r\nHost: x\r\n" + CLOSING, [3079])  # between CR and LF
def test_the_cuts_make_no_difference(raw: bytes, places: list[int]) -> None:
    """Accepted or refused, and for which reason."""
    whole, refused, _ = read([raw])
    begun, refused_in_pieces, _ = read(cut(raw, places))

    assert refused_in_pieces == refused
    assert begun == whole


@pytest.mark.parametrize(
    "line", [b"x: " + b"y" * 300 + b"\r\n", b"x: \t" + b"y" * 300 + b"\r\n", b"y" * 300]
)
def test_little_of_it_is_kept_beside_what_the_parser_holds(line: bytes) -> None:
    """Of many fields, of tabs, and of one field that never ends."""
    begun, refused, kept = read([LINE + b"x: ", *[line] * 100])

    assert not begun
    assert kept <= KEPT + 4096
    assert refused is None or refused[0] == 431


@pytest.mark.parametrize("missing", [0, 1])
def test_its_limit_is_that_of_the_whole(missing: int) -> None:
    """To the byte, with a body behind it in the last piece."""
    start = LINE + b"Host: x\r\nContent-Length: 100\r\n"
    fill = BOUNDS.head + 1 - missing - len(start) - 4 - 4 * 7005
    raw = start + (b"x: " + b"y" * 7000 + b"\r\n") * 4 + b"z" * (fill - 1) + b":\r\n\r\n"
    raw = raw.replace(b"z" * (fill - 1) + b":", b"z:" + b"z" * (fill - 2))
    begun, refused, _ = read([*cut(raw, list(range(0, len(raw), 1000))), b"b" * 100])
    at_once, refused_at_once, _ = read([raw + b"b" * 100])

    assert len(raw) == BOUNDS.head + 1 - missing
    assert (refused is None) == (missing == 1)
    assert refused == refused_at_once
    assert begun == at_once


def test_a_first_line_that_is_not_complete_is_kept() -> None:
    """It is compared to the byte."""
    assert condensed(LINE[:-1]) == LINE[:-1]
    assert condensed(b"\r\n" + LINE[:-2]) == b"\r\n" + LINE[:-2]
