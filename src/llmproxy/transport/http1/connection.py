"""One connection to an upstream: carries one call at a time, and many in its life.

Rule 1: a byte that nobody asked for ends the connection; it never reaches the next caller.
Rule 2: how an answer is delimited is decided here, from its head; where the parser is more
        lenient than we are, we win.
Rule 3: a read is bounded. The event loop would bring 256 KiB at once, which a client that has
        stopped reading then holds. And so is what is read in a row: it would be 32 times as much,
        while everybody else waits.
"""

import asyncio
import threading
from typing import Protocol, cast

import httptools

from llmproxy.errors import UpstreamBroken, UpstreamTimeout
from llmproxy.records import Upload
from llmproxy.transport.http1.answer_memory import AnswerMemory
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.head import Framing, framing_of, head_size, write_head
from llmproxy.transport.http1.kernel import has_news, unconfirmed, unread
from llmproxy.transport.interface import Outgoing
from llmproxy.transport.uploads import counted
from llmproxy.turns import my_turn
from llmproxy.types import Header

MAX_HEAD = 64 * 1024  # bytes of a head, informational ones and chunk overhead included
WRITE_STALL = 60.0  # seconds that an upstream may refuse to take a part of an upload
SMALL = 64 * 1024  # bytes; up to here head and body go out as one piece
AT_ONCE = 1024 * 1024  # bytes that the kernel is given before others have their turn
READ = 64 * 1024  # bytes that one read brings at most
VERSIONS = ("1.1", "1.0")  # that an answer may have; the parser lets others through
IN_A_ROW = 4  # reads that were filled, before others have their turn


class Owner(Protocol):
    """Who is told what becomes of a connection."""

    def returned(self, connection: "Connection") -> None:
        """The call is complete and the connection can carry another."""

    def lost(self, connection: "Connection") -> None:
        """The connection is gone."""


class _Landing(threading.local):
    """Where reads land: one place for all connections of an event loop, which reads one after
    the other. What is read is copied out of it at once."""

    def __init__(self) -> None:
        self.place = memoryview(bytearray(READ))


_landing = _Landing()


class Connection(asyncio.BufferedProtocol):
    """The socket, its parser, and the call that they work for."""

    # One for each stream that is open. Attributes beyond thirty would take 1.3 KB for themselves.
    __slots__ = (
        "_call", "_due", "_framing", "_headers", "_in_a_row", "_informational", "_keep_alive",
        "_landing", "_left", "_loop", "_lost", "_memory", "_name", "_overhead", "_owner",
        "_parsed", "_parser", "_pieces", "_sender", "_size", "_surplus", "_timer", "_to_write",
        "_transport", "_wanted", "_without_body", "_writable", "asked_at", "calls", "idle_since",
        "opened_at", "round_trip", "unheard",
    )  # fmt: skip

    def __init__(self, name: str, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        # The connection
        self._name = name
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None  # set while writing is paused
        self._lost = False
        self.calls = 0
        self.opened_at = 0.0
        self.idle_since = 0.0
        self.round_trip = 0.0  # seconds that it took to connect

        # Its clock. A timer that were set and cancelled for each chunk, or only for each call,
        # would cost more than reading the chunk: it is left running, and who is rung looks
        # whether the deadline has moved on since.
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

        # Whether it is read
        self._wanted = True  # the call takes more
        self._in_a_row = 0

        # The call it carries
        self._call: Http1Call | None = None
        self._sender: asyncio.Task[None] | None = None
        self._without_body = False  # the answer to HEAD
        self._size = 0  # bytes of the request
        self._to_write = 0  # of a large one, those that the event loop was not given yet
        self.asked_at = 0.0
        self.unheard = False  # the upstream closed before any of the request had arrived; for good

        # The answer that is being read
        self._landing = _landing.place
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[Header] = []
        self._pieces: list[bytes] = []  # of the body, from the current read
        self._overhead = 0  # bytes since the last one of a body
        self._framing: Framing | None = None  # None until the final head is there
        self._informational = False
        self._keep_alive = False
        self._parsed = False  # to the last byte
        self._surplus = False  # something came behind the last byte

        # Neither a head that was known before goes to the parser, nor the body behind it
        self._memory = AnswerMemory()
        self._left = 0  # bytes of such a body

    # For the client

    @property
    def answered(self) -> bool:
        """Whether any byte of an answer to the current call has come."""
        return self._overhead > 0 or self._framing is not None

    @property
    def closed(self) -> bool:
        return self._lost or self._transport is None or self._transport.is_closing()

    @property
    def ended_unseen(self) -> bool:
        """Whether the upstream has closed, or said something, and the loop does not know yet."""
        return self._transport is None or has_news(self._transport)

    def ask(self, outgoing: Outgoing) -> Http1Call:
        """Send a request; its answer arrives in the call that is returned."""
        transport = self._transport
        assert transport is not None and self._call is None
        head = write_head(outgoing)
        call = self._call = Http1Call(self, self._loop)
        self.calls += 1
        self.asked_at = self._loop.time()
        self._headers = []
        self._overhead = 0
        self._framing = None
        self._parsed = False
        self._sender = None
        self._without_body = outgoing.method == b"HEAD"
        body = outgoing.body
        if isinstance(body, bytes):
            self._size = len(head) + len(body)
            if len(body) <= SMALL:
                transport.write(head + body)
            else:
                transport.write(head)
                if len(body) <= AT_ONCE:
                    transport.write(body)
                else:
                    self._to_write = len(body)
                    self._sender = self._loop.create_task(self._send_large(body))
        else:
            transport.write(head)
            self._sender = self._loop.create_task(self._send(body, call))
        return call

    @property
    def sending(self) -> bool:
        """Whether an upload is still on its way."""
        return self._sender is not None and not self._sender.done()

    @property
    def unsent(self) -> float:
        """How much the upstream has not taken yet: bytes, and of an upload who knows what."""
        if self._transport is None or self._lost:
            return 0
        waiting: float = self._transport.get_write_buffer_size()
        if self._sender is not None and self.sending:
            # An upload has a clock of its own, and equals nothing that was before.
            waiting += self._to_write or float("nan")
        return 0 if waiting and self.closed else waiting

    def abandon(self) -> None:
        """Close at once; the call that it carried is over."""
        self._call = None
        self._stop_sending()
        self._stop_clock()
        if self._transport is not None:
            self._transport.abort()

    def shut(self) -> None:
        """Close at once, and tell whoever waits for the call."""
        call = self._call
        self.abandon()
        if call is not None:
            call.fail(UpstreamBroken(f"The way to {self._name} was closed."))

    def ring_at(self, due: float) -> None:
        """Have the call look at its deadline then, or earlier."""
        if self._timer is None or self._due > due:
            self._stop_clock()
            self._due = due
            self._timer = self._loop.call_at(due, self._ring)

    def pause_reading(self) -> None:
        self._wanted = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        self._read_on()

    def _read_on(self) -> None:
        self._in_a_row = 0
        if self._wanted and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it
        self.opened_at = self._loop.time()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._landing

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < READ:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            if self._in_a_row == IN_A_ROW and self._transport is not None:
                self._transport.pause_reading()
                self._loop.call_soon(self._read_on)
        self.feed(self._landing[:nbytes].tobytes())

    def feed(self, data: bytes) -> None:
        """Read on."""
        call = self._call
        if call is None:
            self.abandon()
            return
        self._overhead += len(data)
        known = (self._left or self._framing is None) and self._read_known(call, data)
        if not known and not self._parse(call, data):
            return
        pieces = self._pieces
        if pieces:
            self._overhead = 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if not self._parsed and call.pass_on(chunk):
                return
            call.take(chunk)
        if self._parsed:
            self._finish(call)
        elif self._overhead > MAX_HEAD:
            self._break(call, "sent a head that is too long")
            return
        call.wake()

    def _read_known(self, call: Http1Call, data: bytes) -> bool:
        """Read on in an answer whose head was here before; False of every other one."""
        if not self._left:
            if self._framing is not None or self._overhead != len(data) or self._without_body:
                return False
            known = self._memory.recall(data)
            if known is None:
                return False
            call.status, call.headers, self._left, end = known
            self._framing = Framing.LENGTH
            self._keep_alive = True
            data = data[end:]
        body = data[: self._left]
        self._left -= len(body)
        self._parsed = not self._left
        if len(data) > len(body):  # an empty line may stand there, and nothing else
            self._surplus = bool(data[len(body) :].strip(b"\r\n"))
        if body:
            self._pieces.append(body)
        return True

    def _parse(self, call: Http1Call, data: bytes) -> bool:
        """Read on with the parser; False when that was the end of the call."""
        before = self._framing
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(call, "switched protocols without being asked")
            return False
        except httptools.HttpParserError as exc:
            if not self._parsed:
                self._break(call, "sent something that is not an HTTP answer", exc)
                return False
            self._surplus = True
        if before is not None:
            return True
        if self._framing is Framing.INVALID:
            self._break(call, "sent a head that can be read in two ways")
            return False
        if self._overhead > MAX_HEAD and head_size(self._headers) > MAX_HEAD:
            self._break(call, "sent a head that is too long")
            return False
        if self._framing is Framing.LENGTH and self._keep_alive and self._overhead == len(data):
            self._memory.learn(data, call.status, self._headers)
        return True

    def eof_received(self) -> None:
        call, transport = self._call, self._transport
        if call is None or transport is None:
            return
        if not self.answered:
            self.unheard = self._to_write + unconfirmed(transport) >= self._size
        elif self._framing is Framing.CLOSE and not self._parsed:
            self._parsed = True
            self._keep_alive = False
            self._finish(call)
            call.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if exc is not None and self._sender is not None:
            self._hear_out()
        self._stop_sending()
        self._stop_clock()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        call, self._call = self._call, None
        if call is not None:
            failure = UpstreamBroken(f"{self._name} closed the connection before it was done.")
            failure.__cause__ = exc
            call.fail(failure)
        self._owner.lost(self)

    def _hear_out(self) -> None:
        """Read why the upstream takes no more of a large request, if it has said so.

        One that refuses and closes resets the connection. The event loop gives up with the next
        write, which may come before it has read the refusal.
        """
        assert self._transport is not None
        if data := unread(self._transport, MAX_HEAD):
            self.feed(data)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # From the parser. Whatever comes after the last byte is surplus.

    def on_message_begin(self) -> None:
        if self._parsed:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing is None:  # else it is a trailer, and those are dropped
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._parsed or self._framing is not None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._informational = True
            self._headers = []
            return
        version = self._parser.get_http_version()
        self._framing, keep_alive = framing_of(status, self._headers, self._without_body)
        self._keep_alive = keep_alive and version == "1.1"
        if version not in VERSIONS:
            self._framing = Framing.INVALID
        if self._framing is Framing.INVALID or self._call is None:
            return
        self._call.status = status
        self._call.headers = self._headers
        if self._framing is Framing.NONE:
            # The parser may wait for the body that the head of a HEAD or a 304 describes.
            self._parsed = True

    def on_body(self, body: bytes) -> None:
        if self._parsed:
            self._surplus = True
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._informational:
            self._informational = False
        else:
            self._parsed = True

    # The clock

    def _ring(self) -> None:
        self._timer = None
        if self._call is not None:
            self._call.ring()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The ends of a call

    def _finish(self, call: Http1Call) -> None:
        self._call = None
        call.end()
        sending = self._sender is not None and self.sending
        if not self._keep_alive or self._surplus or sending:
            self.abandon()
            return
        if self._framing is Framing.NONE:
            self._parser = httptools.HttpResponseParser(self)
        self._owner.returned(self)

    def _break(self, call: Http1Call, what: str, cause: Exception | None = None) -> None:
        failure = UpstreamBroken(f"{self._name} {what}.")
        failure.__cause__ = cause
        call.fail(failure)
        self.abandon()

    # Bodies that do not go out at once

    async def _send_large(self, body: bytes) -> None:
        """Hand a large body to the kernel in steps, at the pace at which the upstream takes it.

        All at once, the kernel copies as much as it has room for: 1 to 9 ms.
        """
        transport = self._transport
        assert transport is not None
        view = memoryview(body)
        for start in range(0, len(body), AT_ONCE):
            await my_turn()
            while self._writable is not None and not self._lost:
                await self._writable
                await my_turn()
            if self._lost:
                return
            step = view[start : start + AT_ONCE]
            self._to_write -= len(step)
            transport.write(step)

    async def _send(self, upload: Upload, call: Http1Call) -> None:
        """Pass an upload on as it comes in, at the pace at which the upstream takes it."""
        transport = self._transport
        assert transport is not None
        chunked = upload.length is None
        try:
            async for piece in counted(upload):
                if piece:
                    transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                while self._writable is not None and not self._lost:
                    async with asyncio.timeout(WRITE_STALL):
                        await self._writable
                if self._lost:
                    return
            if chunked:
                transport.write(b"0\r\n\r\n")
        except TimeoutError:
            call.fail(UpstreamTimeout(f"{self._name} stopped taking the upload."))
            transport.abort()
        except Exception as error:
            # Too large, too slow, or gone: the caller's side of it failed, and half a
            # request must not look like a whole one.
            call.fail(error)
            transport.abort()

    def _stop_sending(self) -> None:
        if self._sender is not None:
            self._to_write = 0
            self._sender.cancel()
            self._sender = None
