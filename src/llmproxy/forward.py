"""The end of the chain: one attempt against one server.

Reads:  body, endpoint, engine_id, fields, inference, path, started_at
Writes: attempts, upstream, waited
Raises: ClientGone, InvalidRequest, NoUpstream, UpstreamAuth
"""

import asyncio

from llmproxy import clock
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    InvalidRequest,
    ProxyError,
    UpstreamAuth,
    present,
)
from llmproxy.metrics import Metrics
from llmproxy.protocol.request_head import origin_headers, request_headers, target_of
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Clocks, Ending, Upload, Upstream
from llmproxy.relay import FOR_EVER, Relay, bounded
from llmproxy.routing.rotation import Rotation, Server
from llmproxy.stalls import Stalls
from llmproxy.transport import Outgoing
from llmproxy.types import Receive, Scope, Send, watched

LONGEST_TIMEOUT = 86_400.0  # seconds; a day is longer than any answer


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
        deadline = ctx.started_at + self._total(ctx)
        server = self.rotation.choose(endpoint, present(ctx.path, "path"), asked)
        ctx.upstream = server.upstream.name
        ctx.attempts += 1
        limit = self.clocks.first_byte if asked.stream else self.clocks.answer
        asked_at = clock.now()
        result = "failed"
        self.metrics.asking(server.upstream.name, +1)
        try:
            await self._attempt(scope, ctx, server, send, limit, deadline)
            result = "ok"
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        except ProxyError as error:
            result = error.code
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
    ) -> None:
        """Ask one server, and pass its answer on to the last byte."""
        due = clock.now() + limit if limit else FOR_EVER
        call = await server.transport.open(
            self._outgoing(scope, ctx, server.upstream),
            connect=bounded(self.clocks.connect, deadline),
            answer=bounded(limit, deadline),
        )
        delivery = self.stalls.begin(watched=watched(scope) is not None)
        try:
            if call.status in (401, 403):
                raise UpstreamAuth(
                    f"{server.upstream.name} refused the proxy's own credential: its operator"
                    " has to set a valid `key` for this upstream."
                )
            relay = Relay(ctx, call, send, delivery, self.clocks)
            endpoint = present(ctx.endpoint, "endpoint")
            ending = endpoint.ending if scope["method"] == "POST" else Ending.UNKNOWN
            await relay.run(ending, first_byte_due=due, deadline=deadline)
        except asyncio.CancelledError:
            request = asyncio.current_task()
            if delivery.stalled and request is not None and request.uncancel() == 0:
                raise ClientGone("The client stopped taking its answer.") from None
            raise
        finally:
            self.stalls.end(delivery)
            call.close()

    def _outgoing(self, scope: Scope, ctx: RequestContext, upstream: Upstream) -> Outgoing:
        headers = scope["headers"]
        client = scope.get("client")
        address = client[0] if client else None
        origin = origin_headers(
            headers,
            client=address,
            scheme=scope.get("scheme", "http"),
            trusted=self.trusted_proxies.include(address),
            via=self.via,
        )
        native = present(ctx.endpoint, "endpoint").native
        body: bytes | Upload = b"" if ctx.body is None else ctx.body
        path = present(ctx.path, "path")
        return Outgoing(
            method=scope["method"].encode("ascii"),
            target=target_of(path, scope["query_string"], upstream, native=native),
            headers=request_headers(headers, upstream, ctx.engine_id, origin),
            body=body,
        )

    def _total(self, ctx: RequestContext) -> float:
        """Return the seconds that the request may take: ours, or fewer that the caller set."""
        total = self.clocks.total or FOR_EVER
        wanted = ctx.fields.get(b"x-llmproxy-timeout")
        return total if wanted is None else min(total, seconds(wanted))


def seconds(value: bytes) -> float:
    """Read a caller's x-llmproxy-timeout."""
    try:
        result = float(value)
    except ValueError:
        result = -1.0
    if not 0 < result <= LONGEST_TIMEOUT:  # NaN fails this too
        raise InvalidRequest(
            "`x-llmproxy-timeout` must be a number of seconds above 0, 86400 at most.",
            param="x-llmproxy-timeout",
        )
    return result
