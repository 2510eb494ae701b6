"""What the attempts of a request send, on its way to the client.

Rule 1: an error answer is held back as a whole, within a bound: another attempt may follow,
        and only its words tell whether the server is broken or busy. Beyond it a 5xx is dropped
        and counts as a connection that broke, and anything else is passed on.
Rule 2: everything else passes at once; of a stream that could be rescued the bytes are kept.
Rule 3: once the head is out (a comment did that) only a stream can follow it.
"""

from collections.abc import Awaitable
from dataclasses import dataclass

from llmproxy.errors import UpstreamBroken
from llmproxy.headers import find, with_headers
from llmproxy.keeping import FAILED, Keeping
from llmproxy.protocol.comments import KEEP_ALIVE, is_only_comment
from llmproxy.protocol.engine_errors import Complaint, complaint_of
from llmproxy.protocol.response_head import Kind, kind_of
from llmproxy.routing.course import Attempt
from llmproxy.routing.kept import KeptStream
from llmproxy.routing.rescue import COMMENT as CONTINUED
from llmproxy.routing.rescue import CannotContinue, Continuation
from llmproxy.routing.retry import seconds_of
from llmproxy.types import Header, Message, Send, Writer

MOST_HELD = 64 * 1024  # bytes of an error answer
_HELD = frozenset({400, 413, 422, 429})  # and 5xx


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer of an engine, whole."""

    start: Message
    body: bytes

    @property
    def retry_after(self) -> float | None:
        return seconds_of(find(self.start["headers"], b"retry-after"))

    @property
    def complaint(self) -> Complaint:
        waiting = self.retry_after is not None
        return complaint_of(self.start["status"], self.body, retry_after=waiting)


class Trial:
    """Stands for `send` in the attempts of one request."""

    attempt: Attempt
    """The one that is being made."""

    # What nearly every request leaves as it is costs it nothing here.
    _status = 0
    _start: Message | None = None  # the head of an error answer
    _held: list[bytes]  # of its body
    _size = 0
    kept: KeptStream | None = None  # what keeps a stream, if there is one that it can go on with
    _keeping: KeptStream | None = None  # while a stream is passed on
    _continuation: Continuation | None = None
    head_out = False
    begun = False  # bytes of an answer are out
    answered = False  # this attempt was
    refusal: Refusal | None = None  # what the attempt came to

    def __init__(self, send: Send) -> None:
        self._send = send

    def again(self, continuation: Continuation | None = None) -> None:
        """Make ready for the next attempt, which may be the continuation of what is out."""
        self._start = None
        self._size = 0
        self.refusal = None
        self.answered = False
        self._continuation = continuation
        if self.kept is not None:
            self.kept.begin_again()

    @property
    def keeps(self) -> bool:
        """Whether what is out is a stream of which the bytes are kept."""
        return self._keeping is not None

    def delivered(self) -> bytes:
        """Return what the caller has of the stream; raise when that is not known."""
        if self.kept is None or not self.kept.whole:
            raise CannotContinue("too_long")
        return self.kept.delivered()

    async def deliver(self, refusal: Refusal, extra: tuple[Header, ...]) -> None:
        """Pass an error answer on after all."""
        if self.head_out:
            raise UpstreamBroken(
                f"The model server answered with status {refusal.start['status']}."
            )
        await self._send(with_headers(refusal.start, extra))
        await self._send({"type": "http.response.body", "body": refusal.body, "more_body": False})

    @property
    def failed(self) -> bytes:
        """The event in which the server has said that it failed; b"" if it has not."""
        return self.kept.failed if self.kept is not None else b""

    @property
    def holds_back(self) -> bool:
        """Whether the client has less of a stream than has come of it."""
        return self.kept is not None and self.kept.holds_back

    async def tell(self, event: bytes) -> None:
        """Send the event in which a server has said that it failed."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def send(self, message: Message) -> Awaitable[None]:
        """Send what goes to the client. No coroutine: it would cost each message 0.5 us."""
        if message["type"] == "http.response.start":
            return self._head(message)
        if self._start is not None:
            return self._hold_back(message)
        body = message.get("body", b"")
        if body is KEEP_ALIVE or (not self.begun and is_only_comment(body)):
            return self._send(message)
        if self._keeping is not None:
            return self._pass_on(self._keeping, message)
        if not self.answered:
            self._begin()
        return self._send(message)

    def _head(self, message: Message) -> Awaitable[None]:
        self._status = status = message["status"]
        if self.head_out:
            # A second head cannot follow: what is not the same kind of answer is a failure.
            if status != 200 or kind_of(message["headers"]) is not Kind.EVENTS:
                self._start, self._held = message, []
            return _nothing()
        if status >= 500 or status in _HELD:
            self._start, self._held = message, []
            return _nothing()
        self.head_out = True
        if self.kept is not None and kind_of(message["headers"]) is Kind.EVENTS:
            self._keeping = self.kept  # what is no stream, or cannot be read, is not held back
        return self._send(message)

    async def _hold_back(self, message: Message) -> None:
        self._add(message.get("body", b""))
        assert self._start is not None
        if not message.get("more_body", False):
            self.refusal = Refusal(self._start, b"".join(self._held))
        elif self._size > MOST_HELD:
            await self._let_go()

    def _add(self, body: bytes) -> None:
        self._held.append(body)
        self._size += len(body)

    async def _let_go(self) -> None:
        """Pass on a refusal that is too long to be kept; a failure is one, whatever it says."""
        if self.head_out:
            raise UpstreamBroken("The model server answered with an error.")
        if self._status >= 500 and self._status != 501:
            raise UpstreamBroken(
                f"The model server answered with status {self._status}, and at great length."
            )
        assert self._start is not None
        start, self._start = self._start, None
        self.head_out = True
        self._begin()
        await self._send(start)
        body, self._held = b"".join(self._held), []
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _pass_on(self, kept: KeptStream, message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        going = self._through(kept, body)
        if kept.failed:  # this was not the end, whatever the server says
            if going:
                await self._send({**message, "body": going, "more_body": True})
            raise UpstreamBroken(FAILED)
        if last:
            self._begin()
            going += kept.rest()
        if going is body:
            await self._send(message)
        elif going or last:
            await self._send({**message, "body": going})

    def _through(self, kept: KeptStream, body: bytes) -> bytes:
        """Return what goes out of what came in."""
        continuation = self._continuation
        if continuation is not None:
            self._begin()  # it answers, whether any of that is new to the client or not
            body = continuation.feed(body)
            if body and not continuation.announced:
                continuation.announced = True
                body = CONTINUED + body
        going = kept.through(body) if body else body
        if going:
            self._begin()
        return going

    def _begin(self) -> None:
        self.begun = True
        if not self.answered:
            self.answered = True
            self.attempt.answered(self._status)


class WrittenTrial(Trial, Writer):
    """The same where pieces of a body can be written at once."""

    def __init__(self, send: Send, writer: Writer) -> None:
        self._send = send
        self._writer = writer
        # With the head of a whole answer everything is told that there is to tell.
        self.end = writer.end  # type: ignore[method-assign]

    def write(self, body: bytes) -> bool:
        if self._start is not None:
            self._add(body)
            return self._size <= MOST_HELD
        kept = self._keeping
        if kept is None:
            return self._writer.write(body)
        going = self._through(kept, body)
        more = self._writer.write(going) if going else True
        if kept.failed:
            raise UpstreamBroken(FAILED)
        return more

    def takes_whole(self, status: int) -> bool:
        return status < 400 and not self.head_out and self._writer.takes_whole(status)

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        self.head_out = self.begun = self.answered = True
        self.attempt.answered(status)
        self._writer.begin(status, headers, lines)

    def direct(self) -> Writer:
        if self._start is not None or self._continuation is not None:
            return self
        if self._keeping is None:
            return self._writer.direct()
        return Keeping(self._keeping, self._writer.direct()) if self.answered else self

    async def room(self) -> None:
        if self._start is not None and self._size > MOST_HELD:
            await self._let_go()
        await self._writer.room()


async def _nothing() -> None:
    """Send nothing."""
