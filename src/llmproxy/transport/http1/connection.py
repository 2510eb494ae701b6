"""One connection to an upstream: carries one call at a time, and many in its life.

Rule 1: a byte that nobody asked for ends the connection; it never reaches the next caller.
Rule 2: a read is bounded. The event loop would bring 256 KiB at once, which a client that has
        stopped reading then holds. And so is what is read in a row: it would be 32 times as much,
        while everybody else waits.
"""

import asyncio
import threading
from typing import Protocol, cast

from llmproxy.errors import UpstreamBroken
from llmproxy.transport.http1.answer_reader import MAX_HEAD, AnswerReader, Unreadable
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.head import write_head
from llmproxy.transport.http1.kernel import has_news, unread
from llmproxy.transport.http1.request_writer import RequestWriter
from llmproxy.transport.interface import Outgoing

READ = 64 * 1024  # bytes that one read brings at most
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
    """The socket, its clock, and the call that they work for."""

    # One for each stream that is open.
    __slots__ = (
        "_call", "_due", "_in_a_row", "_landing", "_loop", "_lost", "_name", "_owner", "_reader",
        "_timer", "_transport", "_wanted", "_writer", "asked_at", "calls", "idle_since",
        "opened_at", "round_trip", "unheard",
    )  # fmt: skip

    def __init__(self, name: str, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        # The connection
        self._name = name
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
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
        self._landing = _landing.place
        self._wanted = True  # the call takes more
        self._in_a_row = 0

        # The call it carries
        self._call: Http1Call | None = None
        self._reader = AnswerReader()
        self._writer = cast("RequestWriter", None)  # until it is made
        self.asked_at = 0.0
        self.unheard = False  # the upstream closed before any of the request had arrived; for good

    # For the client

    @property
    def answered(self) -> bool:
        """Whether any byte of an answer to the current call has come."""
        return self._reader.heard

    @property
    def closed(self) -> bool:
        return self._lost or self._transport is None or self._transport.is_closing()

    @property
    def ended_unseen(self) -> bool:
        """Whether the upstream has closed, or said something, and the loop does not know yet."""
        return self._transport is None or has_news(self._transport)

    def ask(self, outgoing: Outgoing) -> Http1Call:
        """Send a request; its answer arrives in the call that is returned."""
        assert self._call is None
        head = write_head(outgoing)
        call = self._call = Http1Call(self, self._loop)
        self.calls += 1
        self.asked_at = self._loop.time()
        self._reader.begin(call, outgoing.method == b"HEAD")
        self._writer.send(head, outgoing.body, call)
        return call

    @property
    def unsent(self) -> float:
        """How much the upstream has not taken yet: bytes, and of an upload who knows what."""
        waiting = self._writer.unsent
        return 0 if waiting and self.closed else waiting

    def abandon(self) -> None:
        """Close at once; the call that it carried is over."""
        self._call = None
        self._stop_clock()
        if self._transport is not None:
            self._writer.stop()
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
        self._writer = RequestWriter(self._name, self._transport)
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
        reader = self._reader
        try:
            body = reader.feed(data)
        except Unreadable as what:
            self._break(call, what)
            return
        if body:
            if not reader.complete and call.pass_on(body):
                return
            call.take(body)
        if reader.complete:
            self._finish(call)
        call.wake()

    def eof_received(self) -> None:
        call = self._call
        if call is None:
            return
        if not self.answered:
            self.unheard = self._writer.unheard
        elif self._reader.end():
            self._finish(call)
            call.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if exc is not None and self._writer.takes_long:
            self._hear_out()
        self._writer.stop()
        self._stop_clock()
        call, self._call = self._call, None
        if call is not None:
            failure = UpstreamBroken(f"{self._name} closed the connection before it was done.")
            failure.__cause__ = exc
            call.fail(failure)
        self._reader.close()
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
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

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
        if self._reader.keep_alive and not self._writer.sending:
            self._owner.returned(self)
        else:
            self.abandon()

    def _break(self, call: Http1Call, what: Unreadable) -> None:
        failure = UpstreamBroken(f"{self._name} {what}.")
        failure.__cause__ = what.__cause__
        call.fail(failure)
        self.abandon()
