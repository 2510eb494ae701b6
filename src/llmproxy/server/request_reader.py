"""The requests of one connection: bytes to heads and bodies, one after the other.

Rule 1: a head is judged as a whole, and by its own bytes too: see `head_rules`.
Rule 2: one request at a time. What comes behind it is not kept and never read as another.
"""

from typing import Protocol

import httptools

from llmproxy.server.bounds import Bounds
from llmproxy.server.head_memory import HeadMemory
from llmproxy.server.head_rules import Head, check_head, condensed
from llmproxy.server.refusal import Refusal
from llmproxy.types import Header

# A chunk costs its size and two line ends; what comes on top of that is nobody's need.
FRAMING = 16
KEPT = 2 * 1024  # bytes of a head that comes in pieces; more of them are not kept twice


class Incoming(Protocol):
    """The request whose body is being read."""

    body_complete: bool
    keep_alive: bool

    def feed(self, body: bytes) -> None:
        """Take a piece of the body."""

    def end_body(self) -> None:
        """Note that the body is complete."""


class Owner(Protocol):
    """The connection, as far as it is seen from here."""

    def begin(self, head: Head, method: bytes, memory: HeadMemory | None = None) -> Incoming:
        """Start a request; `memory` is where its head was known from."""


class RequestReader:
    """Feeds the parser and holds what it says against the bounds."""

    def __init__(self, owner: Owner, bounds: Bounds) -> None:
        self._owner = owner
        self._bounds = bounds
        self._parser = httptools.HttpRequestParser(self)
        self._request: Incoming | None = None
        self._refusal: Refusal | None = None
        self.more_behind = False  # bytes came that do not belong to the request

        self.in_head = False
        self.heard = False  # a byte of the head that comes in
        self._raw = b""  # the head as it came, and
        self._dropped = 0  # bytes of it that need not be known any more
        self._target = b""
        self._headers: list[Header] = []
        self._overhead = 0  # bytes that were not content
        self._chunked = False

        # Neither a head that was known before goes to the parser, nor the body behind it
        self._heads = 0  # that were read
        self._in_one_piece = False
        self._memory: HeadMemory | None = None
        self._left = 0  # bytes of such a body

    def begin_head(self) -> None:
        """Expect a new request."""
        self._request = None
        self.in_head = True
        self.heard = False
        self._raw = b""
        self._dropped = 0
        self._target = b""
        self._headers = []
        self._overhead = 0

    def let_go(self) -> None:
        """Forget a request that is answered: its body may be large, and the next one far off."""
        self._request = None
        self._headers = []

    def close(self) -> None:
        """Expect nothing more. Parser and reader hold each other, and would for long."""
        self.let_go()
        self._raw = b""
        self._memory = None
        del self._parser

    def feed(self, data: bytes) -> Refusal | None:
        """Read on; what is returned ends the connection."""
        if self._left:
            self._feed_known(data)
            return None
        if self.in_head:
            self.heard = True
            if not self._raw and self._memory is not None:
                known = self._memory.recall(data)
                if known is not None:
                    head, end = known
                    self._begin_known(head, self._memory, data[end:])
                    return None
            self._in_one_piece = not self._raw
            self._raw = self._raw + data if self._raw else data
        self._overhead += len(data)
        self._parse(data)
        if self.in_head and len(self._raw) > KEPT:
            raw, self._raw = self._raw, condensed(self._raw)
            self._dropped += len(raw) - len(self._raw)
        if self._overhead > self._bounds.head and self._refusal is None:
            self._weigh()
        return self._refusal

    def _begin_known(self, head: Head, memory: HeadMemory, rest: bytes) -> None:
        """Begin a request whose head was here before."""
        self.in_head = False
        self._chunked = False
        self._left = head.length or 0
        self._request = self._owner.begin(head, memory.method, memory)
        self._feed_known(rest)

    def _feed_known(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        body = data[: self._left]
        self._left -= len(body)
        if body:
            request.feed(body)
        if not self._left:
            request.end_body()
            if len(data) > len(body):
                self._parse(data[len(body) :])  # an empty line may stand there, and nothing else

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._go_on_without_upgrade(data[exc.args[0] :])
        except httptools.HttpParserCallbackError:
            raise  # a fault of ours, which must not pass for one of the client's
        except httptools.HttpParserError:
            if self._request is not None and self._request.body_complete:
                self._note_more()  # nonsense behind a request that was none
            else:
                self._refuse(400, "This is not a valid HTTP request.")

    def _weigh(self) -> None:
        if self.in_head:
            self._refuse(431, "The request head is too large.")
            return
        if self._request is not None and not self._request.body_complete:
            self._weigh_framing()

    def _weigh_framing(self) -> None:
        if self._overhead > self._bounds.overhead:
            self._refuse(400, "The body's framing is larger than its content.")

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = self._refusal or Refusal(status, "invalid_request", message)

    def _note_more(self) -> None:
        self.more_behind = True
        if self._request is not None:
            self._request.keep_alive = False

    # From the parser

    def on_message_begin(self) -> None:
        if not self.in_head:
            self._note_more()

    def on_url(self, url: bytes) -> None:
        if self.in_head:
            self._target += url
            if len(self._target) > self._bounds.target:
                self._refuse(414, "The request target is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer: nobody here gives them a meaning
        self._headers.append((name.lower(), value))
        if len(self._headers) > self._bounds.fields or len(name) + len(value) > self._bounds.field:
            self._refuse(431, "The request head is too large.")

    def on_headers_complete(self) -> None:
        if not self.in_head or self._refusal is not None:
            return
        self.in_head = False
        raw, self._raw = self._raw, b""
        parser = self._parser
        method = parser.get_method()
        try:
            # Looked for only where a head could be too long: it may have come in one piece.
            large = self._overhead > self._bounds.head
            if large and self._dropped + _head_size(raw) > self._bounds.head:
                raise Refusal(431, "invalid_request", "The request head is too large.")
            version = parser.get_http_version()
            head = check_head(raw, method, self._target, version, self._headers)
        except Refusal as refused:
            self._refusal = refused.with_traceback(None)  # which would hold this frame, and us
            return
        self._chunked = head.length is None
        self._heads += 1
        # Not of a first head: most streams have a connection of their own, and would pay
        # with memory for what they never do again. Nor of one that came in pieces: it is
        # recalled in one, and what is remembered has to be what was sent, to the byte.
        if self._heads > 1 and head.keep_alive and self._in_one_piece:
            self._memory = self._memory or HeadMemory()
            self._memory.learn(raw, method, head, self._bounds.head)
        self._request = self._owner.begin(head, method)

    def on_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead - len(body) - FRAMING)
        request = self._request
        if request is not None and not request.body_complete:
            request.feed(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it is not complete, the parser just stops here; see _parse
        request = self._request
        if request is None or request.body_complete:
            return
        if self._chunked:
            self._weigh_framing()  # all of it may have come at once
        if self._refusal is None:
            request.end_body()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read a request that wants another protocol as the plain one that it also is.

        The parser stops behind such a head, where the other protocol would begin; curl
        sends `Upgrade: h2c` with a POST and its body.
        """
        request = self._request
        if request is None or self._refusal is not None:
            return
        if request.body_complete:
            self._note_more()
            return
        request.keep_alive = False
        headers = dict(self._headers)
        length = headers.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in headers
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: " + length
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self.more_behind = False  # that was the head that we made up
        request.keep_alive = False
        if rest:
            self._parse(rest)


def _head_size(raw: bytes) -> int:
    return raw.lstrip(b"\r\n").find(b"\r\n\r\n") + 4
