"""The answers that come over one connection: bytes to heads and bodies, one after the other.

Rule 1: how an answer is delimited is decided here, from its head; where the parser is more
        lenient than we are, we win.
Rule 2: what comes behind an answer is never read as another one, and the connection over which
        it came is not used again.
Rule 3: a head is bounded, and so is what a body takes beside itself.
"""

from typing import Protocol

import httptools

from llmproxy.transport.http1.answer_memory import AnswerMemory, Known
from llmproxy.transport.http1.head import Framing, framing_of, head_size
from llmproxy.types import Header

MAX_HEAD = 64 * 1024  # bytes of a head, informational ones and chunk overhead included
VERSIONS = ("1.1", "1.0")  # that an answer may have; the parser lets others through


class Unreadable(Exception):
    """What an upstream did instead of answering."""


class Incoming(Protocol):
    """The answer whose head is being read."""

    status: int
    headers: list[Header]


class AnswerReader:
    """Feeds the parser and holds what it says against the rules."""

    # One for each stream that is open, as its connection.
    __slots__ = (
        "_answer", "_framing", "_headers", "_informational", "_left", "_memory", "_overhead",
        "_parser", "_pieces", "_to_head", "complete", "keep_alive",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Incoming | None = None  # until its final head is there
        self._to_head = False  # the request was HEAD
        self._headers: list[Header] = []
        self._pieces: list[bytes] = []  # of the body, from the current read
        self._overhead = 0  # bytes since the last one of a body
        self._framing: Framing | None = None  # None until the final head is there
        self._informational = False
        self.complete = False  # to the last byte
        self.keep_alive = False  # another request may be sent; known once it is complete

        # Neither a head that was known before goes to the parser, nor the body behind it
        self._memory = AnswerMemory()
        self._left = 0  # bytes of such a body

    @property
    def heard(self) -> bool:
        """Whether any byte of the answer has come."""
        return self._overhead > 0 or self._framing is not None

    def begin(self, answer: Incoming, to_head: bool) -> None:
        """Expect an answer, and put its head there."""
        self._answer = answer
        self._to_head = to_head
        self._overhead = 0
        self._framing = None
        self.complete = False

    def close(self) -> None:
        """Expect nothing more. Parser and reader hold each other, and would for long."""
        self._answer = None
        del self._parser

    def feed(self, data: bytes) -> bytes:
        """Read on, and return what there is of the body; raise `Unreadable` where it ends."""
        if self._left:
            return self._read_counted(data)
        framing = self._framing
        self._overhead += len(data)
        if framing is None and self._overhead == len(data) and not self._to_head:
            known = self._memory.recall(data)
            if known is not None:
                return self._begin_known(known, data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Unreadable("switched protocols without being asked") from None
        except httptools.HttpParserError as exc:
            if not self.complete:
                raise Unreadable("sent something that is not an HTTP answer") from exc
            self.keep_alive = False
        if framing is None:
            self._look_at_head(data)
        pieces = self._pieces
        if pieces:
            self._overhead = 0
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            return body
        if self._overhead > MAX_HEAD and not self.complete:
            raise Unreadable("sent a head that is too long")
        return b""

    def end(self) -> bool:
        """Tell whether an answer is complete now that the connection ends."""
        if self._framing is Framing.CLOSE:
            self.complete = True
        return self.complete

    def _begin_known(self, known: Known, data: bytes) -> bytes:
        """Begin an answer whose head was here before."""
        answer, self._answer = self._answer, None
        assert answer is not None
        answer.status, answer.headers, self._left, end = known
        self._framing = Framing.LENGTH
        self.keep_alive = True
        return self._read_counted(data[end:])

    def _read_counted(self, data: bytes) -> bytes:
        """Read on in such an answer."""
        body = data[: self._left]
        self._left -= len(body)
        self.complete = not self._left
        # An empty line may stand behind it, and nothing else.
        if len(data) > len(body) and data[len(body) :].strip(b"\r\n"):
            self.keep_alive = False
        return body

    def _look_at_head(self, data: bytes) -> None:
        """Refuse what is wrong with a head; of a whole one, remember what may come again."""
        if self._framing is Framing.INVALID:
            raise Unreadable("sent a head that can be read in two ways")
        if self._overhead > MAX_HEAD and head_size(self._headers) > MAX_HEAD:
            raise Unreadable("sent a head that is too long")
        if self._framing is Framing.LENGTH and self.keep_alive and self._overhead == len(data):
            self._memory.learn(data, self._parser.get_status_code(), self._headers)
        elif self._framing is Framing.NONE:
            # The parser may wait for the body that the head of a HEAD or a 304 describes.
            self._parser = httptools.HttpResponseParser(self)

    # From the parser. Whatever comes after the last byte ends the connection.

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False
        else:
            self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing is None:  # else it is a trailer, and those are dropped
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.complete or self._framing is not None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._informational = True
            return
        version = self._parser.get_http_version()
        self._framing, keep_alive = framing_of(status, self._headers, self._to_head)
        self.keep_alive = keep_alive and version == "1.1"
        if version not in VERSIONS:
            self._framing = Framing.INVALID
        if self._framing is Framing.INVALID:
            return
        answer, self._answer = self._answer, None
        assert answer is not None
        answer.status = status
        answer.headers = self._headers
        if self._framing is Framing.NONE:
            self.complete = True

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self.keep_alive = False
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._informational:
            self._informational = False
        else:
            self.complete = True
