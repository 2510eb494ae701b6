"""The second transport, on httpx: for outbound proxies.

Costs about twenty times as much per chunk as our own, so it is taken only where that one
cannot go. The only file that imports httpx.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx

from llmproxy.errors import (
    Overloaded,
    ProxyError,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llmproxy.records import Upload, Upstream
from llmproxy.transport.interface import Outgoing, Resent, Silence, Taker
from llmproxy.transport.limits import PoolLimits
from llmproxy.transport.tls import tls_for
from llmproxy.transport.uploads import counted
from llmproxy.types import Header

RETRY_AFTER = 1  # seconds
WRITE_STALL = 60.0  # seconds that an upstream may refuse to take a part of an upload


class HttpxTransport:
    """Whatever httpx speaks, behind the interface of ours."""

    def __init__(
        self, upstream: Upstream, limits: PoolLimits, *, resent: Resent = lambda: None
    ) -> None:
        self._upstream = upstream
        self._limits = limits
        self._resent = resent
        self._active = 0
        self._closing: set[asyncio.Task[None]] = set()
        scheme = "https" if upstream.scheme == "https" else "http"
        self._origin = f"{scheme}://{upstream.address}"
        self._name = {"sni_hostname": upstream.server_name} if upstream.server_name else {}
        # The transport alone, not a client: no redirects, no cookies, no default headers,
        # no proxies or certificates out of the environment.
        self._http = httpx.AsyncHTTPTransport(
            verify=tls_for(upstream) or upstream.proxy is not None,
            http1=True,
            # Over HTTP/2 it does not reset the stream of an answer that is closed early: the
            # server would go on for a caller who has left.
            http2=False,
            uds=upstream.path or None,
            proxy=upstream.proxy,
            trust_env=False,
            limits=httpx.Limits(
                max_connections=limits.connections or None,
                max_keepalive_connections=None,
                keepalive_expiry=limits.keepalive,
            ),
        )

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> "HttpxCall":
        limit = self._limits.connections
        if limit and self._active >= limit + self._limits.queue:
            raise Overloaded(
                "Every connection to the model server is busy.", retry_after=RETRY_AFTER
            )
        self._active += 1
        try:
            return await self._open(outgoing, connect, answer)
        except BaseException:
            self._active -= 1
            raise

    async def _open(self, outgoing: Outgoing, connect: float, answer: float) -> "HttpxCall":
        trace = _Trace()
        try:
            return await self._ask(outgoing, connect, answer, trace)
        except UpstreamBroken:
            if trace.fresh or trace.answered or not isinstance(outgoing.body, bytes):
                raise
            if not outgoing.harmless or trace.age > self._limits.race:
                raise
        self._resent()
        # The pool throws a connection away once it has failed, so this one is fresh or lives.
        return await self._ask(outgoing, connect, answer, _Trace())

    async def _ask(
        self, outgoing: Outgoing, connect: float, answer: float, trace: "_Trace"
    ) -> "HttpxCall":
        trace.clocks["connect"] = connect or None
        trace.clocks["pool"] = self._limits.queue_timeout
        request = httpx.Request(
            outgoing.method.decode("ascii"),
            self._origin,
            headers=[*outgoing.repeated.headers, *outgoing.headers, *_framing(outgoing)],
            extensions={"timeout": trace.clocks, "trace": trace, **self._name},
            stream=_Body(outgoing.body),
        )
        request.url = _Place(self._origin, outgoing.target)
        sending = asyncio.ensure_future(self._http.handle_async_request(request))
        try:
            await asyncio.wait([sending], timeout=await trace.sent(sending, answer))
            if not sending.done():
                raise UpstreamTimeout(f"{self._upstream.name} did not answer within {answer:g} s.")
            response = await self.translated(sending)
        except BaseException:
            self._discard(sending)
            raise
        call = HttpxCall(self, response, reused=not trace.fresh)
        if response.status_code == 101:
            call.close()
            self._active += 1  # the one who called us gives the place back
            raise UpstreamBroken(f"{self._upstream.name} switched protocols without being asked.")
        return call

    async def aclose(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing, timeout=1.0)
        await self._http.aclose()

    def statistics(self) -> dict[str, int]:
        return {"open": self._active, "idle": 0, "waiting": 0}

    # For the calls

    def finished(self, response: httpx.Response) -> None:
        """Give back what a call has held."""
        self._active -= 1
        self._in_background(_let_go(response))

    async def translated(self, work: "Awaitable[Any]") -> Any:
        """Await something of httpx; what it raises becomes an error of ours."""
        name = self._upstream.name
        try:
            return await work
        except ProxyError:
            raise
        except httpx.PoolTimeout as exc:
            raise Overloaded(
                "No connection to the model server became free in time.", retry_after=RETRY_AFTER
            ) from exc
        except (httpx.ConnectTimeout, httpx.ReadTimeout) as exc:  # to read: from a proxy
            failure = UpstreamTimeout(f"{name} took no connection in time.")
            failure.unasked = True
            raise failure from exc
        except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as exc:
            raise UpstreamUnreachable(f"{name} cannot be reached.") from exc
        except httpx.TimeoutException as exc:
            raise UpstreamTimeout(f"{name} stopped taking the upload.") from exc
        except (httpx.TransportError, httpx.StreamError, httpx.InvalidURL) as exc:
            raise UpstreamBroken(f"{name} closed the connection before it was done.") from exc

    def _discard(self, sending: "asyncio.Future[httpx.Response]") -> None:
        if not sending.done():
            sending.cancel()
        elif not sending.cancelled() and sending.exception() is None:
            self._in_background(sending.result().aclose())

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(_quietly(work))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class HttpxCall:
    """One answer of httpx."""

    def __init__(self, transport: HttpxTransport, response: httpx.Response, reused: bool) -> None:
        self.status = response.status_code
        self.headers: list[Header] = [(name.lower(), value) for name, value in response.headers.raw]
        self.reused = reused
        self._transport = transport
        self._response = response
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        self._chunks = stream.__aiter__()
        self._next: asyncio.Task[bytes] | None = None
        self._over = False
        self._closed = False
        self._failure: ProxyError | None = None

    @property
    def over(self) -> bool:
        return self._over

    async def read(self, within: float) -> bytes:
        if self._failure is not None:
            raise self._failure
        if self._over or self._closed:
            return b""
        if self._next is None:
            self._next = asyncio.ensure_future(self._step())
        await asyncio.wait([self._next], timeout=within or None)
        if not self._next.done():
            raise Silence
        step, self._next = self._next, None
        try:
            chunk: bytes = await self._transport.translated(step)
        except ProxyError as error:
            self._failure = error
            raise
        if not chunk:
            self._over = True
            self.close()
        return chunk

    def at_once(self) -> bytes | None:
        return None  # the library brings the body in a task of its own

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        return True  # what comes is there for `read`

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._next is not None:
            self._next.cancel()
        self._transport.finished(self._response)

    async def _step(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class _Body(httpx.AsyncByteStream):
    def __init__(self, body: bytes | Upload) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes):
            yield self._body
            return
        async for piece in counted(self._body):
            if piece:
                yield piece


class _Place(httpx.URL):
    """Where a request goes, with a target that is sent as it came.

    As an extension of the request the target would also stand in what a proxy is asked: to
    connect us with the origin, or for the whole address.
    """

    def __init__(self, origin: str, target: bytes) -> None:
        super().__init__(origin)
        self._target = target

    @property
    def raw_path(self) -> bytes:
        return self._target


class _Trace:
    """Notes how far a request has come: a new connection, sent, answered.

    A proxy may be asked for a tunnel first, with the same events. That is part of connecting.
    """

    def __init__(self) -> None:
        self.fresh = False
        self.answered = False
        self.clocks: dict[str, float | None] = {"read": None, "write": WRITE_STALL}
        self._tunnelling = False
        self._loop = asyncio.get_running_loop()
        self._began = 0.0  # to send; 0 = not yet
        self._sent = asyncio.Event()

    async def __call__(self, event: str, about: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.started", "connection.connect_unix_socket.started"):
            self.fresh = True
        elif event.endswith("send_request_headers.started"):
            self._tunnelling = about["request"].method == b"CONNECT"
            self._began = self._loop.time()
            # The clock of the answer is ours: httpx would close what it gives up.
            self.clocks["read"] = self.clocks["connect"] if self._tunnelling else None
        elif self._tunnelling:
            return
        elif event.endswith("send_request_body.complete"):
            self._sent.set()
        elif event.endswith("receive_response_headers.complete"):
            self.answered = True

    @property
    def age(self) -> float:
        """Seconds since the request has begun to go out."""
        return self._loop.time() - self._began if self._began else 0.0

    async def sent(self, sending: "asyncio.Future[Any]", answer: float) -> float | None:
        """Return the clock of the answer, once the request is out or has failed."""
        waiting = asyncio.ensure_future(self._sent.wait())
        try:
            await asyncio.wait([waiting, sending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return answer or None


def _framing(outgoing: Outgoing) -> list[Header]:
    body = outgoing.body
    if isinstance(body, bytes):
        if body or outgoing.method in (b"POST", b"PUT", b"PATCH"):
            return [(b"content-length", b"%d" % len(body))]
        return []
    if body.length is not None:
        return [(b"content-length", b"%d" % body.length)]
    return [(b"transfer-encoding", b"chunked")]


async def _let_go(response: httpx.Response) -> None:
    """Close an answer, and with it a connection that could hand its rest to the next caller.

    h11 keeps what came behind an HTTP/1 answer and takes it for the next one.
    """
    if response.extensions.get("http_version", b"").startswith(b"HTTP/1"):
        await response.extensions["network_stream"].aclose()
    await response.aclose()


async def _quietly(work: Any) -> None:
    try:
        await work
    except (httpx.HTTPError, OSError, RuntimeError):
        return  # it is being thrown away; how it goes is nobody's business
