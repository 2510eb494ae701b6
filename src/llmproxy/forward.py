"""The end of the chain: one attempt against one server.

Reads:  body, endpoint, engine_id, fields, inference, outgoing, path, started_at
Writes: attempts, upstream, waited
Raises: ClientGone, InvalidRequest, NoUpstream, UpstreamAuth
"""

import asyncio

from llmproxy import clock
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    ProxyError,
    UpstreamAuth,
    present,
)
from llmproxy.metrics import Metrics
from llmproxy.protocol.request_head import origin_headers, request_headers, target_of
from llmproxy.protocol.request_options import timeout_of
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Clocks, Ending, Upload, Upstream
from llmproxy.relay import FOR_EVER, Relay, bounded
from llmproxy.routing.rotation import Rotation
from llmproxy.routing.server import Server
from llmproxy.stalls import Stalls
from llmproxy.transport import Outgoing
from llmproxy.transport.interface import Repeated
from llmproxy.types import Receive, Scope, Send, watched

MOST_NOTES = 16  # about one head; more upstreams than that are asked anew each time


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
        native = present(ctx.endpoint, "endpoint").native
        body: bytes | Upload | None = ctx.outgoing if ctx.outgoing is not None else ctx.body
        path = present(ctx.path, "path")
        return Outgoing(
            method=scope["method"].encode("ascii"),
            target=target_of(path, scope["query_string"], upstream, native=native),
            headers=[(b"x-request-id", ctx.engine_id.encode())],
            body=b"" if body is None else body,
            repeated=self._repeated(scope, upstream),
        )

    def _repeated(self, scope: Scope, upstream: Upstream) -> Repeated:
        """Return the headers that are the same each time a client repeats its own."""
        headers = scope["headers"]
        client = scope.get("client")
        address = client[0] if client else None
        scheme = scope.get("scheme", "http")
        exchange = watched(scope)
        notes = exchange.notes(headers) if exchange is not None else None
        about = (upstream.name, address, scheme)
        if notes is not None and (known := notes.get(about)) is not None:
            assert isinstance(known, Repeated)
            return known
        origin = origin_headers(
            headers,
            client=address,
            scheme=scheme,
            trusted=self.trusted_proxies.include(address),
            via=self.via,
        )
        repeated = Repeated(request_headers(headers, upstream, origin))
        if notes is not None and len(notes) < MOST_NOTES:
            notes[about] = repeated
        return repeated

    def _total(self, ctx: RequestContext) -> float:
        """Return the seconds that the request may take: ours, or fewer that the caller set."""
        total = self.clocks.total or FOR_EVER
        wanted = timeout_of(ctx.fields)
        return total if wanted is None else min(total, wanted)
