"""The end of the chain: one attempt against one server.

Which one, a layer further out has decided; where there is none, they take turns.

Reads:  attempt, endpoint, engine_id, fields, going_out, inference, path, started_at
Writes: attempts, upstream, waited
Raises: ClientGone, InvalidRequest, NoUpstream, Stopped, UpstreamAuth
"""

import asyncio

from llmproxy import clock
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    ProxyError,
    Stopped,
    UpstreamAuth,
    UpstreamTimeout,
    present,
)
from llmproxy.headers import find
from llmproxy.metrics import Metrics
from llmproxy.protocol.engine_errors import Complaint, complaint_of
from llmproxy.protocol.request_head import origin_headers, request_headers, target_of
from llmproxy.protocol.request_options import TIMEOUT, deadline_of, is_callers_own, time_left
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Clocks, Ending, Endpoint, Upstream
from llmproxy.relay import Relay
from llmproxy.routing.load_watch import ASK_FOR_LOAD, LOAD, heard
from llmproxy.routing.retry import RETRY_AFTER, in_seconds, is_replay_safe
from llmproxy.routing.rotation import Rotation
from llmproxy.routing.server import Server
from llmproxy.stalls import Stalls
from llmproxy.time_left import FOR_EVER, in_time, is_past, out_of_time
from llmproxy.transport import Call, Outgoing
from llmproxy.transport.interface import Repeated
from llmproxy.types import Header, Receive, Scope, Send, WatchedExchange, watched

MOST_NOTES = 16  # about one head; more upstreams than that are asked anew each time

_COMPLAINTS = {Complaint.BUSY: "busy", Complaint.FAILED: "error"}  # the others are refusals


class Forward:
    """Ask a server and pass on what it says."""

    def __init__(
        self,
        *,
        rotation: Rotation,
        clocks: Clocks,
        stalls: Stalls,
        metrics: Metrics,
        trusted_proxies: TrustedProxies,
        mark: bytes,
    ) -> None:
        self.rotation = rotation
        self.clocks = clocks
        self.stalls = stalls
        self.metrics = metrics
        self.trusted_proxies = trusted_proxies
        self.via = b"1.1 " + mark

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        endpoint = present(ctx.endpoint, "endpoint")
        asked = present(ctx.inference, "inference")
        deadline = deadline_of(ctx.started_at, ctx.fields, self.clocks.total)
        limit = self.clocks.first_byte if asked.stream else self.clocks.answer
        attempt = ctx.attempt
        if attempt is None:
            server = self.rotation.choose(endpoint, present(ctx.path, "path"), asked)
        else:
            server = attempt.server
            if attempt.first_byte:
                limit = min(limit or FOR_EVER, attempt.first_byte)
        ctx.upstream = server.upstream.name
        ctx.attempts += 1
        asked_at = clock.now()
        result = "failed"
        self.metrics.asking(server.upstream.name, +1)
        try:
            result = await self._attempt(scope, ctx, server, send, limit, deadline)
        except asyncio.CancelledError:
            late = attempt is not None and attempt.is_late is not None and attempt.is_late()
            result = UpstreamTimeout.code if late else "cancelled"
            raise
        except ProxyError as error:
            if server.stopped and not isinstance(error, ClientGone):
                result = Stopped.code
                raise Stopped("The proxy was stopped before the answer was complete.") from None
            result = error.code
            if isinstance(error, UpstreamTimeout) and error.of_request:
                error.by_caller = is_callers_own(ctx.fields, self.clocks.total)
            raise
        finally:
            ctx.waited += clock.now() - asked_at
            self.metrics.asking(server.upstream.name, -1)
            self.metrics.attempt(server.upstream.name, result)

    async def _attempt(
        self,
        scope: Scope,
        ctx: RequestContext,
        server: Server,
        send: Send,
        limit: float,
        deadline: float,
    ) -> str:
        """Ask one server, and pass its answer on to the last byte; return what it came to."""
        if is_past(deadline):
            raise out_of_time("The time set for the request was over before it was asked.")
        due = clock.now() + limit if limit else FOR_EVER
        endpoint = present(ctx.endpoint, "endpoint")
        exchange = watched(scope)
        opening = server.transport.open(
            self._outgoing(scope, ctx, endpoint, server.upstream, exchange, deadline),
            connect=self.clocks.connect,
            answer=limit,
        )
        # Its clock for the answer stands while the request is still going out.
        call = await (opening if deadline == FOR_EVER else in_time(opening, deadline))
        del opening  # a stream would keep it for as long as it lasts
        delivery = self.stalls.begin(watched=exchange is not None)
        try:
            attempt = ctx.attempt
            if attempt is not None and attempt.asks_load:
                heard(server, find(call.headers, LOAD) or b"", clock.now())
            if call.status in (401, 403):
                raise UpstreamAuth(
                    f"{server.upstream.name} refused the proxy's own credential: its operator"
                    " has to set a valid `key` for this upstream."
                )
            result = "ok"
            if call.status >= 400:
                call.headers = in_seconds(call.headers)
                result = _complained(call)
            relay = Relay(ctx, call, send, delivery, self.clocks)
            ending = endpoint.ending if scope["method"] == "POST" else Ending.UNKNOWN
            await relay.run(ending, first_byte_due=due, deadline=deadline)
            return result
        except asyncio.CancelledError:
            request = asyncio.current_task()
            if delivery.stalled and request is not None and request.uncancel() == 0:
                raise ClientGone("The client stopped taking its answer.") from None
            raise
        finally:
            self.stalls.end(delivery)
            call.close()

    def _outgoing(
        self,
        scope: Scope,
        ctx: RequestContext,
        endpoint: Endpoint,
        upstream: Upstream,
        exchange: WatchedExchange | None,
        deadline: float,
    ) -> Outgoing:
        body = ctx.going_out
        path = present(ctx.path, "path")
        headers: list[Header] = [(b"x-request-id", ctx.engine_id.encode())]
        if ctx.attempt is not None and ctx.attempt.asks_load:
            headers.append(ASK_FOR_LOAD)
        if TIMEOUT in ctx.fields:
            headers.append((TIMEOUT, time_left(deadline - clock.now())))
        return Outgoing(
            scope["method"].encode("ascii"),
            target_of(path, scope["query_string"], upstream, native=endpoint.native),
            headers,
            b"" if body is None else body,
            self._repeated(scope, upstream, exchange),
            is_replay_safe(endpoint, present(ctx.inference, "inference")),
            exchange,
        )

    def _repeated(
        self, scope: Scope, upstream: Upstream, exchange: WatchedExchange | None
    ) -> Repeated:
        """Return the headers that are the same each time a client repeats its own."""
        headers = scope["headers"]
        client = scope.get("client")
        address = client[0] if client else None
        scheme = scope.get("scheme", "http")
        notes = exchange.notes(headers) if exchange is not None else None
        about = (upstream.name, address, scheme)
        # A server may become another one under its name: with another key, or elsewhere.
        if notes is not None and (known := notes.get(about)) and known[0] is upstream:
            noted: Repeated = known[1]
            return noted
        origin = origin_headers(
            headers,
            client=address,
            scheme=scheme,
            trusted=self.trusted_proxies.include(address),
            via=self.via,
        )
        repeated = Repeated(request_headers(headers, upstream, origin))
        if notes is not None and (about in notes or len(notes) < MOST_NOTES):
            notes[about] = upstream, repeated
        return repeated


def _complained(call: Call) -> str:
    """Return what an error answer is counted as, by its head: its words have not come yet."""
    waiting = find(call.headers, RETRY_AFTER) is not None
    return _COMPLAINTS.get(complaint_of(call.status, b"", retry_after=waiting), "refused")
