"""One request and its answer: what the app receives and sends.

Rule 1: an answer that was not completed never looks complete.
Rule 2: the head goes out together with the first bytes of the body, in one write.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llmproxy.cleanup import forget_origin
from llmproxy.context import SCOPE_KEY
from llmproxy.errors import ProxyError, RequestTimeout
from llmproxy.server.head_memory import HeadMemory
from llmproxy.transport.interface import Underway
from llmproxy.types import ASGIApp, Header, Message, Scope, Writer

if TYPE_CHECKING:
    from llmproxy.server.protocol import GuardedProtocol

STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_BODYLESS = (204, 304)
_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})
LARGE = 16 * 1024  # bytes; a piece of this size is not copied to put its frame around it

log = logging.getLogger("llmproxy.server")


class BrokenAnswer(RuntimeError):
    """The app sent something that is no HTTP answer."""


class Exchange(Writer):
    """The ASGI side of one request."""

    call: Underway | None = None  # nobody is asked yet, or it is not known whom

    def __init__(
        self,
        protocol: "GuardedProtocol",
        scope: Scope,
        *,
        keep_alive: bool,
        expects_continue: bool,
        old: bool,
        memory: HeadMemory | None,
    ) -> None:
        # The connection
        self._protocol = protocol
        self._transport = protocol.transport
        self._loop = protocol.loop
        self.keep_alive = keep_alive
        self.gone = False  # the client hung up before the answer was complete

        # The request
        self.scope = scope
        self._memory = memory
        self.received = 0  # bytes of its body
        self._pieces: list[bytes] = []
        self._buffered = 0
        self.body_complete = False
        self._body_taken = False
        self.late = False  # the body did not arrive in time
        self._expects_continue = expects_continue
        self._waiter: asyncio.Future[None] | None = None

        # The answer
        self._head: bytes | None = None  # held back until there is a body to go with it
        self.started = False
        self.complete = False
        self._old = old  # HTTP/1.0: the end of the connection is the end of the answer
        self._chunked = False
        self._left: int | None = None  # of a counted body
        self._bodyless = False

        # What the app may ask for instead of waiting in `receive`
        self.task: asyncio.Task[None] | None = None
        self._cancels = False

    @property
    def committed(self) -> bool:
        """Whether bytes of the answer have gone out."""
        return self.started and self._head is None

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection tells that the answer is complete."""
        return not self._chunked and self._left is None and not self._bodyless

    # The app

    async def run(self, app: ASGIApp, running: "set[asyncio.Task[None]]") -> None:
        """Run the app, and see that the client is not left with half an answer.

        The task is among those that are `running` for as long: a callback at its end would
        cost a turn of the loop.
        """
        task = self.task
        assert task is not None
        running.add(task)
        try:
            await app(self.scope, self.receive, self.send)
        except ProxyError:
            pass  # an answer that cannot be finished: raised only so that it is cut here
        except asyncio.CancelledError:
            if not self.complete and not self.gone:
                self._leave_unfinished(503, "draining", "The server is shutting down.")
            raise
        except Exception:
            if not self.gone:
                log.exception("the app failed")
        finally:
            if not self.complete and not self.gone:
                self._leave_unfinished(500, "internal_error", "The server failed to answer.")
            running.discard(task)
            # These close circles, and a circle waits for the garbage collector: 7 % of what a
            # request costs, and as much memory as its body and its answer had.
            self.task = None
            self.scope.pop("extensions", None)
            context = self.scope.pop(SCOPE_KEY, None)
            if context is not None and context.failure is not None:
                forget_origin(context.failure)

    def cancel_when_gone(self, wanted: bool) -> None:
        """Have the running task cancelled as soon as the client hangs up, or no more."""
        self._cancels = wanted
        if wanted and self.gone and self.task is not None:
            self._cancels = False  # a second time would be taken for somebody else's doing
            self.task.cancel()

    def notes(self, headers: list[Header]) -> dict[Any, Any] | None:
        """Return what was noted about these headers, when this connection repeats them."""
        memory = self._memory
        return memory.notes if memory is not None and memory.headers == headers else None

    def take_body(self) -> bytes | None:
        if not self.body_complete or self.late or self._body_taken or len(self._pieces) != 1:
            return None
        self._buffered = 0
        self._body_taken = True
        return self._pieces.pop()

    async def receive(self) -> Message:
        while not self._pieces:
            if self.late:
                raise RequestTimeout("The request body did not arrive in time.")
            if self.gone or self.complete:
                return {"type": "http.disconnect"}
            if self.body_complete and not self._body_taken:
                break
            if self._expects_continue:
                self._expects_continue = False
                if not self.started:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._protocol.resume_reading()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        self._body_taken = self.body_complete
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            if self.gone:
                return
            if not self.started or self.complete:
                raise BrokenAnswer("a body before the head, or after the end of the answer")
            self._send_body(message.get("body", b""), message.get("more_body", False))
            if self._protocol.blocked is not None:
                await self._protocol.unblocked()
        elif kind == "http.response.start":
            self.begin(message["status"], message.get("headers", ()))

    def takes_whole(self, status: int) -> bool:
        return True

    def begin(
        self, status: int, headers: "tuple[Header, ...] | list[Header]", lines: bytes = b""
    ) -> None:
        if self.started:
            raise BrokenAnswer("the answer was begun twice")
        self._begin(status, headers, lines)
        self.started = True

    def end(self, body: bytes) -> bool:
        if self.gone:
            return True
        if not self.started or self.complete:
            raise BrokenAnswer("a body before the head, or after the end of the answer")
        self._send_body(body, False)
        return self._protocol.blocked is None

    def write(self, body: bytes) -> bool:
        if self.gone:
            return True
        if not self.started or self.complete:
            raise BrokenAnswer("a body before the head, or after the end of the answer")
        self._send_body(body, True)
        return self._protocol.blocked is None

    async def room(self) -> None:
        if self._protocol.blocked is not None:
            await self._protocol.unblocked()

    # The connection

    def feed(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(body)
        self.received += len(body)
        self._buffered += len(body)
        if self._buffered > self._protocol.bounds.read_ahead:
            self._protocol.pause_reading()
        if self._waiter is not None:
            self._wake()

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.body_complete = True
        self._protocol.body_arrived()
        if self._waiter is not None:
            self._wake()

    def hang_up(self) -> None:
        """Note that the client has gone before its answer was complete."""
        if self.gone:
            return
        self.gone = True
        self._protocol.see_off(self)

    def let_go(self) -> None:
        """Close what a server is asked on its behalf: the task is not woken by that."""
        if self.call is not None:
            self.call.close()

    def cancel(self) -> None:
        """End the running task, unless it has come to where it must not be disturbed.

        Before it can be cancelled it reads the body, and is told there.
        """
        if self._cancels and self.task is not None:
            self.task.cancel()
        self._wake()
        self._protocol.seen_off()

    def give_up_on_body(self) -> None:
        """Note that the body took too long."""
        self.late = True
        self.keep_alive = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Bytes

    def _begin(
        self, status: int, headers: "tuple[Header, ...] | list[Header]", lines: bytes
    ) -> None:
        kept: list[Header] = []
        counted: int | None = None
        for name, value in headers:
            name = name.lower()
            if name not in _FRAMING:
                kept.append((name, value))
            elif name == b"content-length":
                if counted is not None or not value.isdigit():
                    raise BrokenAnswer("the Content-Length of the answer is malformed")
                counted = int(value)
                if status != 204:
                    kept.append((name, value))
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        self._bodyless = self.scope["method"] == "HEAD" or status in _BODYLESS
        if not self._bodyless:
            self._left = counted
            if counted is None:
                self._chunked = not self._old
                if self._chunked:
                    kept.append((b"transfer-encoding", b"chunked"))
                else:
                    self.keep_alive = False
        if not self.body_complete or self._protocol.closing_soon:
            self.keep_alive = False
        if not self.keep_alive:
            kept.append((b"connection", b"close"))
        first = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        fields = [b": ".join(header) for header in kept]
        fields += (b"", b"")  # the end of the last line, and of the head
        theirs = b"\r\n".join(fields)
        count = len(kept) + 1
        if theirs.count(b"\r") != count or theirs.count(b"\n") != count or b"\0" in theirs:
            raise BrokenAnswer("a header of the answer holds a control character")
        self._head = b"%b%b%b%b" % (first, self._protocol.date(), lines, theirs)

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            if not body:
                data = b"" if more else b"0\r\n\r\n"
            elif more:
                if len(body) >= LARGE:
                    self._send_large(body)
                    return
                data = b"%x\r\n%b\r\n" % (len(body), body)
            else:
                data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif self._bodyless:
            data = b""
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise BrokenAnswer("the body is not as long as its Content-Length says")
            data = body
        if self._head is not None:
            data, self._head = self._head + data, None
        if data:
            self._transport.write(data)
        if not more:
            self.complete = True
            if self._waiter is not None:
                self._wake()
            self._protocol.answered(self)

    def _send_large(self, body: bytes) -> None:
        # The piece may wait here for long, and whoever sent it keeps it meanwhile: a copy
        # would be most of what a reader that stands still can hold.
        head, self._head = self._head or b"", None
        self._transport.writelines((b"%b%x\r\n" % (head, len(body)), body, b"\r\n"))

    def _leave_unfinished(self, status: int, code: str, message: str) -> None:
        if not self.committed:
            self._protocol.refuse(status, code, message)
            return
        # Where the end of the connection is the end of the answer, only a reset tells.
        self._protocol.cut(reset=self.ends_with_connection)
