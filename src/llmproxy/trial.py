"""What the attempts of a request send, on its way to the client.

Rule 1: an error answer is held back as a whole, within a bound: another attempt may follow.
Rule 2: everything else passes at once; of a stream that could be rescued the bytes are kept.
Rule 3: once the head is out (a comment did that) only a stream can follow it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmproxy.errors import UpstreamBroken
from llmproxy.headers import find, with_headers
from llmproxy.protocol.comments import KEEP_ALIVE, is_only_comment
from llmproxy.protocol.engine_errors import Complaint, complaint_of
from llmproxy.protocol.response_head import Kind, kind_of
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

    def __init__(
        self, send: Send, kept: KeptStream | None, *, hold: bool, begins: Callable[[int], None]
    ) -> None:
        """`begins` is told the status as soon as the first byte of an answer goes out."""
        self._send = send
        self._kept = kept
        self._hold = hold
        self._begins = begins
        self._status = 0
        self._start: Message | None = None  # the head of an error answer
        self._held: list[bytes] = []
        self._size = 0
        self._keeping: KeptStream | None = None  # while a stream is passed on
        self._continuation: Continuation | None = None
        self.head_out = False
        self.begun = False  # bytes of an answer are out
        self.answered = False  # this attempt was
        self.refusal: Refusal | None = None  # what the attempt came to

    def again(self, continuation: Continuation | None = None) -> None:
        """Make ready for the next attempt, which may be the continuation of what is out."""
        self._start = None
        self._held = []
        self._size = 0
        self.refusal = None
        self.answered = False
        self._continuation = continuation
        if self._kept is not None:
            self._kept.begin_again()

    @property
    def keeps(self) -> bool:
        """Whether what is out is a stream of which the bytes are kept."""
        return self._keeping is not None

    def delivered(self) -> bytes:
        """Return what the caller has of the stream; raise when that is not known."""
        if self._kept is None or not self._kept.whole:
            raise CannotContinue("too_long")
        return self._kept.delivered()

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
        return self._kept.failed if self._kept is not None else b""

    @property
    def holds_back(self) -> bool:
        """Whether the client has less of a stream than has come of it."""
        return self._kept is not None and self._kept.holds_back

    async def tell(self, event: bytes) -> None:
        """Send the event in which a server has said that it failed."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._head(message)
        elif self._start is not None:
            await self._hold_back(message)
        elif message.get("body") is KEEP_ALIVE or (
            not self.begun and is_only_comment(message.get("body", b""))
        ):
            await self._send(message)
        else:
            await self._pass_on(message)

    async def _head(self, message: Message) -> None:
        self._status = status = message["status"]
        if self.head_out:
            # A second head cannot follow: what is not the same kind of answer is a failure.
            if status != 200 or kind_of(message["headers"]) is not Kind.EVENTS:
                self._start = message
            return
        if self._hold and (status >= 500 or status in _HELD):
            self._start = message
            return
        self.head_out = True
        if self._kept is not None and kind_of(message["headers"]) is Kind.EVENTS:
            self._keeping = self._kept  # what is no stream, or cannot be read, is not held back
        await self._send(message)

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
        """Pass on an error answer that is too long to be kept."""
        if self.head_out:
            raise UpstreamBroken("The model server answered with an error.")
        assert self._start is not None
        start, self._start = self._start, None
        self.head_out = True
        self._begin()
        await self._send(start)
        body, self._held = b"".join(self._held), []
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _pass_on(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        kept = self._keeping
        if kept is None:
            self._begin()
            await self._send(message)
            return
        going = self._through(kept, body)
        if kept.failed:  # this was not the end, whatever the server says
            if going:
                await self._send({**message, "body": going, "more_body": True})
            raise UpstreamBroken("The model server reported an error in mid-stream.")
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
            self._begins(self._status)


class WrittenTrial(Trial, Writer):
    """The same where pieces of a body can be written at once."""

    def __init__(
        self,
        send: Send,
        kept: KeptStream | None,
        *,
        hold: bool,
        begins: Callable[[int], None],
        writer: Writer,
    ) -> None:
        super().__init__(send, kept, hold=hold, begins=begins)
        self._writer = writer

    def write(self, body: bytes) -> bool:
        if self._start is not None:
            self._add(body)
            return self._size <= MOST_HELD
        kept = self._keeping
        if kept is None:
            return self._writer.write(body)
        if self._continuation is None and self.answered:
            going = kept.through(body)
        else:
            going = self._through(kept, body)
        more = self._writer.write(going) if going else True
        if kept.failed:
            raise UpstreamBroken("The model server reported an error in mid-stream.")
        return more

    def direct(self) -> Writer:
        return self._writer.direct() if self._keeping is None and self._start is None else self

    async def room(self) -> None:
        if self._start is not None and self._size > MOST_HELD:
            await self._let_go()
        await self._writer.room()
