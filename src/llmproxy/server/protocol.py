"""The connection of one client: bytes to requests, one after the other, within bounds.

uvicorn runs it in the place of its own HTTP protocol and is asked for nothing but `config`,
`server_state` and the list of connections it shuts down.
"""

import asyncio
import socket
import struct
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from llmproxy.server.bounds import Bounds
from llmproxy.server.connections import Connections
from llmproxy.server.exchange import Exchange, refusal
from llmproxy.server.head_rules import Head, Refusal, check_head
from llmproxy.types import EXCHANGE, Header, Scope

FOR_EVER = float("inf")
_PROBE_AFTER = 30  # seconds of silence; then the kernel asks whether the peer is still there
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


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
        self._root_path = config.root_path
        self._state = app_state
        self._server_state = server_state
        self._connections = connections

        # The connection
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._server: tuple[str, int | None] | None = None
        self._client: tuple[str, int] | None = None
        self._scheme = "http"
        self.deadline = FOR_EVER
        self.blocked: asyncio.Future[None] | None = None  # while the client does not take more
        self._unsent = 0
        self._reading = True
        self.closing_soon = False
        self._lingering = False

        # The request that comes in
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._target = b""
        self._headers: list[Header] = []
        self._in_head = False
        self._overhead = 0  # bytes since the last that belonged to a body
        self._had_body = False
        self._body_began_at = 0.0
        self._refusal: Refusal | None = None

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._server_state.connections.add(cast("Any", self))
        self._connections.add(self)
        self._connections.idle(self)
        self.deadline = self.loop.time() + self.bounds.head_timeout
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._set_options(sock)
            self._server = _address(sock.getsockname())
            peer = transport.get_extra_info("peername")
            self._client = cast("tuple[str, int] | None", _address(peer))
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = "https"

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(cast("Any", self))
        self._connections.remove(self)
        self.deadline = FOR_EVER
        if self._exchange is not None:
            self._exchange.hang_up()
        self._unblock()

    def eof_received(self) -> bool:
        # As in nginx and uvicorn, a client that stops sending has hung up.
        return False

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        exchange = self._exchange
        if exchange is not None and exchange.body_complete:
            # A request behind the one that is being answered. It is not kept, and must not
            # hide that the client hangs up: it is answered by the end of the connection.
            exchange.keep_alive = False
            return
        if not self._in_head and exchange is None:
            self._begin_head()
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._go_on_without_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            if self._exchange is not None and self._exchange.body_complete:
                self._exchange.keep_alive = False  # nonsense behind a request that was none
                return
            self._refuse(400, "invalid_request", "This is not a valid HTTP request.")
        if self._had_body:
            self._had_body = False
            self._overhead = 0
        elif self._overhead > (self.bounds.head if self._in_head else self.bounds.overhead):
            self._refuse(*_too_long(self._in_head))
        if self._refusal is not None:
            self._turn_away(self._refusal)

    def pause_writing(self) -> None:
        self.blocked = self.loop.create_future()
        self._unsent = self._waiting_to_go()
        self.deadline = self.loop.time() + self.bounds.write_timeout

    def resume_writing(self) -> None:
        self._unblock()
        exchange = self._exchange
        waits = exchange is None or not exchange.body_complete
        self.deadline = self.loop.time() + self.bounds.idle_timeout if waits else FOR_EVER

    # From the parser

    def on_message_begin(self) -> None:
        if self._exchange is not None:
            self._exchange.keep_alive = False  # one more behind it; see data_received

    def on_url(self, url: bytes) -> None:
        if self._in_head:
            self._target += url
            if len(self._target) > self.bounds.target:
                self._refuse(414, "invalid_request", "The request target is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nobody here gives them a meaning
        self._headers.append((name.lower(), value))
        if len(self._headers) > self.bounds.fields or len(name) + len(value) > self.bounds.field:
            self._refuse(431, "invalid_request", "The request head is too large.")

    def on_headers_complete(self) -> None:
        if not self._in_head or self._refusal is not None:
            return
        self._in_head = False
        parser = self._parser
        try:
            head = check_head(
                parser.get_method(), self._target, parser.get_http_version(), self._headers
            )
        except Refusal as refused:
            self._refusal = refused
            return
        self._start(head, old=parser.get_http_version() == "1.0")

    def on_body(self, body: bytes) -> None:
        self._had_body = True
        if self._exchange is not None and not self._exchange.body_complete:
            self._exchange.feed(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if self._parser.should_upgrade():
            return  # it is not complete, the parser just stops here; see data_received
        if exchange is not None and not exchange.body_complete:
            exchange.end_body()
            if self.blocked is None:
                self.deadline = FOR_EVER

    # For the exchange

    def date(self) -> bytes:
        """Return the Date line that uvicorn renews every second."""
        return b"".join(b"%b: %b\r\n" % each for each in self._server_state.default_headers)

    def pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    async def unblocked(self) -> None:
        """Return once the client takes more, or is gone."""
        while self.blocked is not None:
            await asyncio.shield(self.blocked)

    def answered(self, exchange: Exchange) -> None:
        """The answer is complete: wait for the next request, or close."""
        self._server_state.total_requests += 1
        self._exchange = None
        if not exchange.keep_alive:
            self._close_kindly(unread=not exchange.body_complete)
            return
        self.resume_reading()
        if self.blocked is None:
            self.deadline = self.loop.time() + self.bounds.idle_timeout
        self._connections.idle(self)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer an exchange in the place of the app."""
        self._turn_away(Refusal(status, code, message))

    def cut(self, *, reset: bool) -> None:
        """Close in the middle of an answer, after what was sent of it."""
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self._close()

    # For uvicorn and for the clocks

    def shutdown(self) -> None:
        """Close as soon as nothing is under way."""
        self.closing_soon = True
        if self._exchange is None and not self._in_head:
            # Not at once: a request may be on its way, and closing would lose it. It is
            # answered with `Connection: close`.
            self.deadline = min(self.deadline, self.loop.time() + self.bounds.lame_duck)

    def close_idle(self) -> None:
        self._close()

    def look(self, now: float) -> None:
        exchange = self._exchange
        if self._lingering or self.transport.is_closing():
            self.transport.abort()
        elif self.blocked is not None:
            self._look_at_progress(now)
        elif self._in_head and self._overhead:
            self._turn_away(Refusal(408, "request_timeout", "The request head took too long."))
        elif exchange is not None:
            self._look_at_body(exchange, now)
        else:
            self._close()

    def _look_at_body(self, exchange: Exchange, now: float) -> None:
        if exchange.late:
            self.transport.abort()
        elif not self._reading:
            self.deadline = now + self.bounds.body_timeout  # it is not the client who is slow
        elif (due := self._body_due(exchange)) > now:
            self.deadline = due
        else:
            self.deadline = now + self.bounds.linger
            exchange.give_up_on_body()

    def _body_due(self, exchange: Exchange) -> float:
        allowed = self.bounds.body_timeout + exchange.received / self.bounds.body_rate
        return self._body_began_at + allowed

    def _look_at_progress(self, now: float) -> None:
        unsent = self._waiting_to_go()
        if unsent < self._unsent:
            self._unsent = unsent
            self.deadline = now + self.bounds.write_timeout
        else:
            self.transport.abort()

    def _waiting_to_go(self) -> int:
        return self.transport.get_write_buffer_size()

    def _unblock(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)

    # The beginning of a request

    def _begin_head(self) -> None:
        self._in_head = True
        self._target = b""
        self._headers = []
        self._overhead = 0
        self._connections.busy(self)
        # A first request has no more time than since the connection was made.
        self.deadline = min(self.deadline, self.loop.time() + self.bounds.head_timeout)

    def _start(self, head: Head, *, old: bool) -> None:
        path = head.path.decode("ascii")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if old else "1.1",
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": self._parser.get_method().decode("ascii"),
            "root_path": self._root_path,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._state.copy(),
        }
        exchange = Exchange(
            self,
            scope,
            keep_alive=head.keep_alive,
            expects_continue=head.expects_continue,
            old=old,
        )
        scope["extensions"] = {EXCHANGE: exchange}
        self._exchange = exchange
        self._body_began_at = self.loop.time()
        self.deadline = self._body_began_at + self.bounds.body_timeout
        exchange.task = task = self.loop.create_task(exchange.run(self._app))
        tasks = self._server_state.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read a request that wants another protocol as the plain one that it also is.

        The parser stops behind such a head, where the other protocol would begin; curl
        sends `Upgrade: h2c` with a POST and its body.
        """
        exchange = self._exchange
        if exchange is None or self._refusal is not None:
            return
        exchange.keep_alive = False
        length = dict(exchange.scope["headers"]).get(b"content-length", b"")
        framing = b"transfer-encoding: chunked" if not length else b"content-length: " + length
        if not length and b"transfer-encoding" not in dict(exchange.scope["headers"]):
            exchange.end_body()
            return
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n" + rest)

    # The ends of a connection

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._refusal = self._refusal or Refusal(status, code, message)

    def _turn_away(self, refused: Refusal) -> None:
        """Say no, where an answer has not begun, and close."""
        exchange, self._exchange = self._exchange, None
        begun = exchange is not None and exchange.started
        if exchange is not None:
            exchange.hang_up()
        if begun:
            self.cut(reset=False)
            return
        self.transport.write(
            refusal(refused.status, refused.code, refused.message, refused.headers, self.date())
        )
        self._close_kindly(unread=True)

    def _close_kindly(self, *, unread: bool) -> None:
        """Close such that the answer arrives.

        Closing a socket with unread bytes resets it, and the reset may overtake the answer:
        so first only our side is closed, and what the client still sends is thrown away.
        """
        if not unread or self.transport.is_closing():
            self._close()
            return
        self._lingering = True
        self.deadline = self.loop.time() + self.bounds.linger
        self.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self._close()

    def _close(self) -> None:
        """Close once everything is sent; a client that does not take it gets its time."""
        self.deadline = self.loop.time() + self.bounds.write_timeout
        self.transport.close()

    def _set_options(self, sock: socket.socket) -> None:
        if sock.family == getattr(socket, "AF_UNIX", None):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.bounds.send_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(self.bounds.user_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _too_long(in_head: bool) -> tuple[int, str, str]:
    if in_head:
        return 431, "invalid_request", "The request head is too large."
    return 400, "invalid_request", "The body's framing is larger than its content."


def _address(name: object) -> tuple[str, int | None] | None:
    """Return an address as ASGI has it."""
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return (name, None) if isinstance(name, str) and name else None
