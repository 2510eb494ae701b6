"""The connection of one client: its one request at a time, and its end.

uvicorn runs it in the place of its own HTTP protocol and is asked for nothing but `config`,
`server_state` and the list of connections it shuts down.
"""

import asyncio
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from llmproxy.context import SCOPE_KEY
from llmproxy.server.bounds import Bounds
from llmproxy.server.client_clock import ClientClock
from llmproxy.server.closing import break_off, close, close_one_side, look_at_rest
from llmproxy.server.connections import Connections
from llmproxy.server.exchange import Exchange
from llmproxy.server.head_memory import HeadMemory
from llmproxy.server.head_rules import Head
from llmproxy.server.intake import Intake
from llmproxy.server.place import Place
from llmproxy.server.refusal import Refusal
from llmproxy.server.request_reader import RequestReader
from llmproxy.types import EXCHANGE, Header

RETRY_AFTER = ((b"retry-after", b"1"),)


class GuardedProtocol(asyncio.Protocol):
    """Reads requests from one client and lets the app answer them."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.bounds = bounds
        self.loop = loop
        self._app = config.loaded_app
        self._server_state = server_state
        self._connections = connections

        # The connection
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._place = Place(config.root_path, app_state)
        self.closing_soon = False
        self._half_open = False  # the client has closed its side, and waits to be seen off
        self._lingering = False  # the last word is said; what still comes is thrown away

        # The request that comes in, and the one that is answered
        self._reader = RequestReader(self, bounds)
        self._exchange: Exchange | None = None
        self._dated: list[Header] | None = None
        self._date_line = b""

        # When the client is read and looked at, and whether it takes what waits for it
        self._intake = cast("Intake", None)
        self._clock = cast("ClientClock", None)
        self.blocked: asyncio.Future[None] | None = None  # while the client does not take more

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        with suppress(NotImplementedError):  # asyncio asks it of no transport
            self.transport.set_write_buffer_limits(self.bounds.write_ahead)
        if not self._connections.add(self):
            full = "All connections are in use."
            self._say_no(Refusal(503, "overloaded", full, RETRY_AFTER))
            self._lingering = True
            self.transport.close()
            return
        self._server_state.connections.add(cast("Any", self))
        self._connections.idle(self)
        deadlines = self._connections.deadlines
        self._intake = Intake(self.transport, self.loop)
        self._clock = ClientClock(self, self.transport, self.bounds, deadlines, self.loop)
        self._place.learn(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(cast("Any", self))
        self._connections.remove(self)
        if self._clock is not None:  # it was let in
            self._clock.close()
            self._intake.close()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.hang_up()
        self._unblock()
        self._reader.close()
        # Nobody asks for them any more, not even a request that is still under way: it knows that
        # its client is gone. Each leads back here: a circle of a dozen objects would wait for the
        # collector, which keeps the loop for 15 ms when it comes by.
        self._half_open = False
        del self._reader, self._intake, self._clock, self.transport

    def eof_received(self) -> bool:
        # As in nginx and uvicorn, a client that stops sending has hung up. What it was sent
        # may still be on its way for long, so its request is told now.
        exchange = self._exchange
        if exchange is not None:
            exchange.hang_up()
            if exchange.committed and exchange.ends_with_connection:
                break_off(self.transport)
            # The rest of the connection is closed when its request is: to close this side of
            # hundreds takes as long as to let their servers go, which is urgent. TLS cannot wait.
            self._half_open = exchange.gone and self.transport.can_write_eof()
        return self._half_open

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        exchange = self._exchange
        reader = self._reader
        if exchange is not None and exchange.body_complete:
            # A request behind the one that is being answered. It is not kept, and must not
            # hide that the client hangs up: it is answered by the end of the connection.
            exchange.keep_alive = False
            reader.more_behind = True
            return
        begins = exchange is None and not reader.in_head
        if begins:
            self._begin_head()
        refused = reader.feed(data)
        if refused is not None:
            self._turn_away(refused)
            return
        # Most requests come at once, and need neither clock.
        if reader.in_head:
            if begins:
                self._clock.head_begins()
            self._intake.heard(len(data), self._clock.deadline)
        elif (current := self._exchange) is not None and not current.body_complete:
            if exchange is None:
                self._clock.body_begins()
            self._intake.heard(len(data), self._clock.deadline)

    def pause_writing(self) -> None:
        self.blocked = self.loop.create_future()
        self._clock.watch_progress(self.bounds.write_timeout / 4)

    def resume_writing(self) -> None:
        self._unblock()
        exchange = self._exchange
        if self._lingering:
            self._clock.allow(self.bounds.linger)
        elif exchange is None and self._reader.in_head:
            self._clock.allow(self.bounds.head_timeout)
        elif exchange is None:
            self._wait_for_request()
        elif exchange.body_complete:
            self._clock.stop()
        else:
            self._clock.set(self._clock.body_due(exchange.received))

    # For the reader

    def begin(self, head: Head, method: bytes, memory: HeadMemory | None = None) -> Exchange:
        scope = self._place.scope(head, method)
        exchange = Exchange(
            self,
            scope,
            keep_alive=head.keep_alive,
            expects_continue=head.expects_continue,
            old=head.old,
            memory=memory,
        )
        scope["extensions"] = {EXCHANGE: exchange}
        self._exchange = exchange
        running = self._server_state.tasks
        exchange.task = self.loop.create_task(exchange.run(self._app, running))
        return exchange

    # For the exchange

    def see_off(self, exchange: Exchange) -> None:
        """End an exchange whose client has gone, when it is its turn."""
        self._connections.departures.add(exchange)

    def seen_off(self) -> None:
        """Close behind a client that has gone."""
        if self._half_open:
            self.transport.close()

    def body_arrived(self) -> None:
        """The request is complete: from now on only its client's leaving is of interest."""
        if self.blocked is None:
            self._clock.stop()
        self.resume_reading()  # or nobody would notice that it does

    def date(self) -> bytes:
        """Return the Date line that uvicorn renews every second."""
        headers = self._server_state.default_headers
        if headers is not self._dated:
            self._dated = headers
            self._date_line = lines_of(tuple(headers))
        return self._date_line

    def pause_reading(self) -> None:
        self._intake.pause()

    def resume_reading(self) -> None:
        if not self._intake.open:
            self._clock.excuse(self._intake.resume())  # it was not the client

    async def unblocked(self) -> None:
        """Return once the client takes more, or is gone."""
        while self.blocked is not None:
            await asyncio.shield(self.blocked)

    def answered(self, exchange: Exchange) -> None:
        """The answer is complete: wait for the next request, or close."""
        self._server_state.total_requests += 1
        self._exchange = None
        self._reader.let_go()
        if not exchange.keep_alive:
            self._close_kindly(unread=not exchange.body_complete or self._reader.more_behind)
            return
        if self.blocked is None:
            self._wait_for_request()
        self._connections.idle(self)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer an exchange in the place of the app."""
        self._turn_away(Refusal(status, code, message, RETRY_AFTER if status == 503 else ()))

    def cut(self, *, reset: bool) -> None:
        """Close in the middle of an answer, after what was sent of it."""
        if reset:
            break_off(self.transport)
        else:
            self._close()

    # For uvicorn and for the clocks

    def shutdown(self) -> None:
        """Close as soon as nothing is under way."""
        self.closing_soon = True
        if self._exchange is None and not self._reader.in_head and not self._lingering:
            # Not at once: a request may be on its way, and closing would lose it. It is
            # answered with `Connection: close`.
            soon = self.loop.time() + self.bounds.lame_duck
            self._clock.set(min(self._clock.deadline, soon))

    def close_idle(self) -> None:
        self._close()

    def look(self, now: float) -> None:
        exchange = self._exchange
        if self._lingering or self.transport.is_closing():
            look_at_rest(self.transport, self._clock, self.bounds, now)
        elif self.blocked is not None:
            if self._clock.progress(now):
                self._clock.set(now + self.bounds.write_timeout / 4)
            else:
                break_off(self.transport)
        elif exchange is not None:
            self._look_at_body(exchange, now)
        elif self._reader.heard:
            self._turn_away(Refusal(408, "request_timeout", "The request head took too long."))
        else:
            self._close()

    def _look_at_body(self, exchange: Exchange, now: float) -> None:
        if exchange.late:
            break_off(self.transport)
        elif not self._intake.open:
            self._clock.set(now + self.bounds.body_timeout)  # it is not the client who is slow
        elif (due := self._clock.body_due(exchange.received)) > now:
            self._clock.set(due)
        else:
            self._clock.set(now + self.bounds.linger)
            exchange.give_up_on_body()

    def _unblock(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)

    # The beginning of a request

    def _begin_head(self) -> None:
        self._reader.begin_head()
        self._connections.busy(self)
        self._intake.request_begins()

    def _wait_for_request(self) -> None:
        self._reader.heard = False
        bounds = self.bounds
        self._clock.allow(bounds.lame_duck if self.closing_soon else bounds.idle_timeout)

    # The ends of a connection

    def _turn_away(self, refused: Refusal) -> None:
        """Say no, where an answer has not begun, and close."""
        exchange, self._exchange = self._exchange, None
        context = None
        if exchange is not None:
            committed = exchange.committed
            exchange.hang_up()
            if committed:
                self.cut(reset=exchange.ends_with_connection)
                return
            context = exchange.scope.get(SCOPE_KEY)
        self._say_no(refused, context.request_id if context is not None else None)
        self._close_kindly(unread=True)

    def _say_no(self, refused: Refusal, name: str | None = None) -> None:
        self.transport.write(refused.answer(self.date(), name))

    def _close_kindly(self, *, unread: bool) -> None:
        if not unread or self.transport.is_closing():
            self._close()
            return
        self._lingering = True
        close_one_side(self.transport, self._clock, self._intake, self.bounds)

    def _close(self) -> None:
        close(self.transport, self._clock, self.bounds)


@lru_cache(maxsize=4)
def lines_of(headers: tuple[Header, ...]) -> bytes:
    """Return headers as they stand in a head."""
    return b"".join(b"%b: %b\r\n" % each for each in headers)
