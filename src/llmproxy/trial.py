"""What the attempts of a request send, on its way to the client.

Rule 1: an error answer is held back as a whole, within a bound: another attempt may follow,
        and only its words tell whether the server is broken or busy. Beyond it a 5xx is dropped
        and counts as a connection that broke, and anything else is passed on.
Rule 2: everything else passes at once; of a stream that could be rescued the bytes are kept.
Rule 3: once the head is out (a comment did that) only a stream can follow it. That of a stream
        which another server may replace goes out with the first that is passed on of it.
"""

from collections.abc import Awaitable
from dataclasses import dataclass

from llmproxy.errors import UpstreamBroken
from llmproxy.first_token import FirstToken
from llmproxy.headers import find, with_headers
from llmproxy.keeping import FAILED
from llmproxy.protocol.comments import KEEP_ALIVE, is_only_comment
from llmproxy.protocol.engine_errors import Complaint, complaint_of
from llmproxy.protocol.response_head import Kind, kind_of
from llmproxy.routing.course import Attempt
from llmproxy.routing.delivered import CannotContinue
from llmproxy.routing.kept import BLANK_LINES, KeptStream
from llmproxy.routing.rescue import COMMENT as CONTINUED
from llmproxy.routing.rescue import Continuation
from llmproxy.routing.retry import seconds_of
from llmproxy.types import Header, Message, Send

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
    _head_held: Message | None = None  # of a stream of which nothing was passed on yet
    first_token: FirstToken | None = None  # while that is waited for
    _unsent = b""  # what came while a piece of it could not be written at once
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
        self.first_token = None
        self._unsent = b""
        if not self.head_out:
            self._head_held = self._keeping = None
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

    async def keep_alive(self) -> None:
        """Send a comment while nobody is asked. The client is between two events."""
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    def send(self, message: Message) -> Awaitable[None]:
        """Send what goes to the client. No coroutine: it would cost each message 0.5 us."""
        if message["type"] == "http.response.start":
            return self._head(message)
        if self._start is not None:
            return self._hold_back(message)
        body = message.get("body", b"")
        if body is KEEP_ALIVE or (not self.begun and self._is_comment(body)):
            return self._send(message) if self.head_out else self._with_head(message)
        if self.first_token is not None:
            return self._wait(self.first_token, message)
        if self._keeping is not None:
            return self._pass_on(self._keeping, message)
        if not self.answered:
            self._begin()
        return self._send(message)

    def _is_comment(self, body: bytes) -> bool:
        """Tell whether what came is only a comment, and not the rest of an event."""
        if not is_only_comment(body):
            return False
        half = self.first_token or self.kept
        return half is None or not half.held or half.held.endswith(BLANK_LINES)

    def _head(self, message: Message) -> Awaitable[None]:
        self._status = status = message["status"]
        # What is no stream, or cannot be read, is not held back.
        stream = (
            self.head_out or self.kept is not None or self.first_token is not None
        ) and kind_of(message["headers"]) is Kind.EVENTS
        if not stream or status != 200:
            self.first_token = None
        if self.head_out:
            # A second head cannot follow: what is not the same kind of answer is a failure.
            if status != 200 or not stream:
                self._start, self._held = message, []
            return _nothing()
        if status >= 500 or status in _HELD:
            self._start, self._held = message, []
            return _nothing()
        if stream:
            self._keeping, self._head_held = self.kept, message
            return _nothing()
        self.head_out = True
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

    async def _with_head(self, message: Message) -> None:
        """Send something, with the head before it if that was held back."""
        head, self._head_held = self._head_held, None
        if head is not None:
            self.head_out = True
            await self._send(head)
        await self._send(message)

    async def _wait(self, first_token: FirstToken, message: Message) -> None:
        """Hold back what comes before the first token."""
        last = not message.get("more_body", False)
        if not first_token.take(message.get("body", b""), last=last):
            return
        self.first_token = None
        message = {**message, "body": first_token.held}
        if self._keeping is not None:
            await self._pass_on(self._keeping, message)
        else:
            self._begin()
            await self._with_head(message)

    async def _pass_on(self, kept: KeptStream, message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        going = self._through(kept, body, last=last)
        if kept.failed:  # this was not the end, whatever the server says
            if going:
                await self._with_head({**message, "body": going, "more_body": True})
            raise UpstreamBroken(FAILED)
        if last:
            self._begin()
            going += kept.rest()
        if going is not body:
            message = {**message, "body": going}
        if going or last:
            await (self._send(message) if self._head_held is None else self._with_head(message))

    def _through(self, kept: KeptStream, body: bytes, *, last: bool = False) -> bytes:
        """Return what goes out of what came in."""
        continuation = self._continuation
        if continuation is not None:
            self._begin()  # it answers, whether any of that is new to the client or not
            body = continuation.feed(body)
            if last:
                body += continuation.rest()
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


async def _nothing() -> None:
    """Send nothing."""
