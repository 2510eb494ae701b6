"""Give each request its name and its context, and write down how it ended.

Stands outermost, so that what it counts is what the client was sent.

Reads:  answering_model, attempts, charged, chunks, client, complete, endpoint, engine_id, failure,
        first_byte_at, inference, limit_lines, paused, principal, queued, request_id, rescues, sent,
        settle, started_at, status, tail, tap, upstream, waited
Writes: client, complete, sent, status
Raises: (nothing)
"""

import os
import re
from collections.abc import Callable
from typing import Any

from llmproxy import clock
from llmproxy.context import SCOPE_KEY, RequestContext
from llmproxy.errors import ClientGone, Outcome
from llmproxy.headers import of_lines
from llmproxy.logs import AccessLog
from llmproxy.metrics import Metrics
from llmproxy.protocol.response_head import LIMIT_HEADERS
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Ending
from llmproxy.types import ASGIApp, Header, Message, Receive, Scope, Send, Writer, writer_of

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PATH_LENGTH = 256  # characters of a path that a log line shows
_COMPLETED = Outcome.COMPLETED  # looking a member up in its Enum takes three times as long
_NAMES = 256  # that are drawn at once: a call of the kernel for each costs more than the rest

_names: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_names.clear)  # or both would give the same ones


class ObserveMiddleware:
    """One context, one log line and one set of measurements per request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        access_log: AccessLog,
        trusted_proxies: TrustedProxies,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log
        self.trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        headers = scope["headers"]
        ctx = scope[SCOPE_KEY] = new_context(headers)
        peer = scope.get("client")
        ctx.client = self.trusted_proxies.client(peer[0] if peer else None, headers)

        writer = writer_of(send)
        sent = Sent(ctx, send) if writer is None else Written(ctx, send, writer)
        self.metrics.inflight(+1)
        stopped = False
        try:
            await app(scope, receive, sent.send)
        except BaseException as exc:
            stopped = not isinstance(exc, Exception)
            raise
        finally:
            self.metrics.inflight(-1)
            self._write_down(scope, ctx, stopped)

    def _write_down(self, scope: Scope, ctx: RequestContext, stopped: bool) -> None:
        ended_at = clock.now()
        duration = ended_at - ctx.started_at
        outcome = outcome_of(ctx, stopped)
        failure = ctx.failure if outcome is not _COMPLETED else None
        status = ctx.status or (failure.status if failure is not None else 0)
        left = stopped
        if isinstance(failure, ClientGone):
            left = True
            status = failure.status  # whatever it had been sent, it did not stay for the rest
        model = ctx.inference.model if ctx.inference is not None else None
        endpoint = ctx.endpoint.name if ctx.endpoint is not None else None
        overhead = duration - ctx.waited - ctx.queued - ctx.paused
        answering = ctx.answering_model
        usage = None  # and what follows is `settled`, in line
        try:
            if ctx.tap is not None:
                usage = ctx.tap.usage()
        finally:
            settle = ctx.settle
            if settle is not None:
                settle(ctx, usage, left)
        if ctx.charged is not None:
            usage = ctx.charged

        self.metrics.request(
            model=model,
            upstream=ctx.upstream,
            status=status,
            outcome=outcome,
            duration=duration,
            overhead=overhead,
            usage=usage,
            answering=answering,
        )
        first_token = None
        if ctx.first_byte_at is not None:
            first_token = ctx.first_byte_at - ctx.started_at
            if ctx.tail is not None:
                gaps = ctx.chunks - 1
                gap = (ended_at - ctx.first_byte_at) / gaps if gaps > 0 else None
                self.metrics.stream(ctx.upstream, first_token, gap)

        if self.access_log.enabled:
            # Only what is known: to leave the rest out later costs more than to write the line.
            line: dict[str, Any] = {
                "time": clock.wall(),
                "event": "request",
                "request_id": ctx.request_id,
            }
            if ctx.attempts:
                line["engine_request_id"] = ctx.engine_id
            if ctx.client is not None:
                line["client"] = ctx.client
            line["method"] = scope["method"]
            line["path"] = scope["path"][:_PATH_LENGTH]
            if endpoint is not None:
                line["endpoint"] = endpoint
            if model is not None:
                line["model"] = model[:_PATH_LENGTH]
            if answering is not None and answering != model:
                line["answering_model"] = answering
            principal = ctx.principal
            if principal is not None:
                line["principal"] = principal.name
                if principal.team is not None:
                    line["team"] = principal.team
            line["stream"] = ctx.tail is not None
            line["status"] = status
            line["outcome"] = outcome._value_  # `value` is a Python function
            if failure is not None:
                line["code"] = failure.code
            if ctx.upstream is not None:
                line["upstream"] = ctx.upstream
            line["attempts"] = ctx.attempts
            if ctx.rescues:
                line["rescues"] = ctx.rescues
            line["duration_ms"] = milliseconds(duration)
            if first_token is not None:
                line["first_token_ms"] = milliseconds(first_token)
            line["overhead_ms"] = milliseconds(overhead)
            waited = ctx.queued + ctx.paused
            if waited and (queue := milliseconds(waited)):
                line["queue_ms"] = queue
            line["bytes"] = ctx.sent
            if usage is not None:
                line["prompt_tokens"] = usage.prompt
                line["completion_tokens"] = usage.completion
                if usage.estimated:
                    line["tokens_estimated"] = True
            self.access_log.write(line)


class Sent:
    """What a client is sent on one request."""

    __slots__ = ("_note", "_send", "ctx")

    def __init__(self, ctx: RequestContext, send: Send) -> None:
        self.ctx = ctx
        self._send = send
        self._note: Callable[[bytes], None] | None = None  # who wants to know of the pieces

    async def send(self, message: Message) -> None:
        ctx = self.ctx
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            ctx.sent += len(body)
            note = self._note
            if not message.get("more_body", False):
                ctx.complete = True
                if ctx.tap is not None:
                    ctx.tap.end(body if note is not None else b"")
            elif note is not None:
                note(body)
        elif message["type"] == "http.response.start":
            ctx.status = message["status"]
            if ctx.tap is not None:
                self._note = ctx.tap.begin(message["status"], message.get("headers", []))
            headers = others(ctx, message.get("headers", ()))
            message = {**message, "headers": [*headers, *of_lines(own_lines(ctx))]}
        await self._send(message)


class Written(Sent, Writer):
    """The same under our own server, which takes a piece of a body at once."""

    __slots__ = ("_headers", "_writer")

    def __init__(self, ctx: RequestContext, send: Send, writer: Writer) -> None:
        self.ctx = ctx  # not by way of `super`, which every request would pay for
        self._send = send
        self._note = None
        self._writer = writer

    def takes_whole(self, status: int) -> bool:
        return self._writer.takes_whole(status)

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        ctx = self.ctx
        ctx.status = status
        self._headers = headers
        self._writer.begin(status, headers, lines + own_lines(ctx))

    def end(self, body: bytes) -> bool:
        ctx = self.ctx
        ctx.sent += len(body)
        ctx.complete = True
        if ctx.tap is not None:
            ctx.tap.complete(ctx.status or 0, self._headers, body)
        return self._writer.end(body)

    def write(self, body: bytes) -> bool:
        self.ctx.sent += len(body)
        if self._note is not None:
            self._note(body)
        return self._writer.write(body)

    async def room(self) -> None:
        await self._writer.room()


def new_context(headers: list[Header]) -> RequestContext:
    """Return the context of a request that has just come in."""
    ours = new_name()
    fields = dict(headers)
    theirs = fields.get(b"x-request-id")
    if theirs is not None and _REQUEST_ID.fullmatch(theirs):
        return RequestContext(theirs.decode(), ours, clock.now(), fields)
    return RequestContext(ours, ours, clock.now(), fields)


def new_name() -> str:
    """Return a random name. It reads as a UUID: llama-cpp-python takes nothing else."""
    try:
        return _names.pop()
    except IndexError:
        drawn = os.urandom(_NAMES * 16).hex()
        _names.extend(drawn[at : at + 32] for at in range(0, len(drawn), 32))
        return _names.pop()


def milliseconds(seconds: float) -> float:
    """Return seconds as a log has them, to the microsecond."""
    return round(seconds * 1e6) / 1000  # to whole numbers: four times as fast as to digits


def own_lines(ctx: RequestContext) -> bytes:
    """Return what every answer carries, as lines of its head."""
    if ctx.upstream is None:
        return b"%bx-request-id: %b\r\n" % (ctx.limit_lines, ctx.request_id.encode())
    return b"%bx-request-id: %b\r\nx-llmproxy-upstream: %b\r\nx-llmproxy-attempts: %d\r\n" % (
        ctx.limit_lines,
        ctx.request_id.encode(),
        ctx.upstream.encode(),
        ctx.attempts,
    )


def others(ctx: RequestContext, headers: list[Header]) -> list[Header]:
    """Return the headers of an answer without the limits of a cloud, where we tell of our own."""
    if not ctx.limit_lines or LIMIT_HEADERS.isdisjoint(dict(headers)):
        return headers
    return [header for header in headers if header[0] not in LIMIT_HEADERS]


def outcome_of(ctx: RequestContext, stopped: bool) -> Outcome:
    """Return the one word for how a request ended."""
    failure = ctx.failure
    if failure is None:
        if stopped:
            return Outcome.STOPPED
        if not ctx.complete:
            return Outcome.FAILED
        refused = ctx.upstream is not None and ctx.status is not None and ctx.status >= 400
        return Outcome.REFUSED if refused else _COMPLETED
    # Most client libraries hang up at [DONE], before the end of the body.
    tail = ctx.tail
    gone = isinstance(failure, ClientGone) and ctx.status is not None
    if gone and tail is not None and tail.ending is not Ending.UNKNOWN and tail.finished():
        return Outcome.COMPLETED
    # A failure after the beginning of an answer is another thing than one before it, except
    # that it makes no difference to a caller who left.
    if failure.outcome is Outcome.UPSTREAM_FAILED and not ctx.complete:
        return Outcome.STREAM_BROKEN
    return failure.outcome
