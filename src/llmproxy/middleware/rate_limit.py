"""Hold each caller to its limits and budgets.

Reserves before anything is asked for, and settles once, whatever becomes of the request: by being
called at its end where the limits are kept in this process, else by itself.

Reads:  answering_model, attempts, client, endpoint, failure, held, inference, principal, settle,
        status, tap
Writes: charged, held, limit_lines, settle
Raises: LayerMissing, QuotaSpent, RateLimited, StoreUnavailable
"""

import asyncio
from collections.abc import Awaitable

from llmproxy.cleanup import finish
from llmproxy.context import SCOPE_KEY, RequestContext, get_context
from llmproxy.errors import ClientGone, ProxyError, UpstreamTimeout, missing
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.reservation import Reservation, Ticket
from llmproxy.records import Endpoint, InferenceRequest, Usage
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send

SETTLE_WITHIN = 2.0  # seconds: long enough for a slow store, short enough for a shutdown


class RateLimitMiddleware:
    """Reserve what a request may take, settle what it took."""

    def __init__(self, app: ASGIApp, *, limiter: Limiter) -> None:
        self.app = app
        self.limiter = limiter
        self._at_once = limiter.at_once
        self._settle = self._settle_now  # bound once, and not for each request

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self.app
        if scope["type"] != "http":
            return app(scope, receive, send)

        ctx: RequestContext = scope.get(SCOPE_KEY) or get_context(scope)  # a call costs 0.1 us
        at_once = self._at_once
        endpoint, asked = ctx.endpoint, ctx.inference
        if endpoint is None or asked is None:
            raise missing("endpoint" if endpoint is None else "inference")
        # A layer of the same kind further out may have something to settle already.
        if at_once is None or ctx.settle is not None:
            return self._in_time(ctx, endpoint, asked, scope, receive, send)
        # Nothing has to be waited for, and so there is nothing to be interrupted in.
        held = at_once.reserve(ctx.principal, ctx.client, endpoint, asked)
        ctx.held, ctx.settle = held, self._settle
        ctx.limit_lines = held.head_lines
        if held.plan.cut and isinstance(held, Reservation):
            send = self._asking(ctx, held, send)
        return app(scope, receive, send)

    def _settle_now(self, ctx: RequestContext, counted: Usage | None, left: bool) -> None:
        held, status, usage = ctx.held, ctx.status, counted
        at_once, ctx.settle = self._at_once, None
        assert held is not None and at_once is not None
        try:
            if left or status is None or status >= 400:
                usage = self._usage(ctx, held, ctx.failure, left)
                if not left:
                    self._take_back(ctx, held, ctx.failure)
        finally:  # whatever an answer has in it: what is held must be given back
            if isinstance(held, Ticket):
                at_once.settle_ticket(held, usage, ctx.tap)
            elif held.plan.lines:
                at_once.settle(held, usage, ctx.tap, ctx.answering_model)

    async def _in_time(
        self,
        ctx: RequestContext,
        endpoint: Endpoint,
        asked: InferenceRequest,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Do the same where a store has to be waited for, to settle as well."""
        limiter = self.limiter
        held = await limiter.reserve(ctx.principal, ctx.client, endpoint, asked)
        ctx.limit_lines = held.head_lines
        if held.plan.cut:
            send = self._asking(ctx, held, send)
        left, failure = False, None
        try:
            await self.app(scope, receive, send)
        except (asyncio.CancelledError, ClientGone):
            left = True
            raise
        except ProxyError as error:
            failure = error
            raise
        finally:
            usage = None
            try:
                usage = self._usage(ctx, held, failure, left)
                if not left and ctx.status is None:
                    self._take_back(ctx, held, failure)
            finally:
                failure = None  # it holds this frame
                if held.plan.lines:
                    settling = limiter.settle(held, usage, ctx.tap, ctx.answering_model)
                    await finish(settling, within=SETTLE_WITHIN)

    def _usage(
        self,
        ctx: RequestContext,
        reservation: Reservation | Ticket,
        failure: ProxyError | None,
        left: bool,
    ) -> Usage | None:
        """Return what is charged; None when nobody has counted and the estimate has to do."""
        status = ctx.status
        if status is None and isinstance(failure, UpstreamTimeout) and failure.by_caller:
            left = True  # and has said so beforehand
        policy = self.limiter.charge_cancelled if left else "counted"
        if status is None:
            if left and ctx.attempts and policy == "counted":
                read = reservation.estimate.read()
                ctx.charged = read
                return read
            return Usage()  # nothing came of it
        if status >= 400:
            return Usage()
        usage = ctx.tap.usage(policy) if ctx.tap is not None else None
        if usage is None and policy != "counted":
            usage = Usage()
        if left:
            ctx.charged = usage
        return usage

    def _take_back(
        self, ctx: RequestContext, held: Reservation | Ticket, failure: ProxyError | None
    ) -> None:
        """Have what was refused for want of room not be a request.

        The only attempt may be one that found no connection free. Without a failure and an answer
        the request is made once more, and counts then.
        """
        if failure is not None and (failure.counts or ctx.attempts > 1):
            return
        if failure is not None or ctx.status is None:
            held.take_back()
            ctx.limit_lines = b""  # they tell of a request that was none

    def _asking(self, ctx: RequestContext, reservation: Reservation, send: Send) -> Send:
        """Ask, while a stream runs, whether there is still a budget for it."""

        async def send_if_paid(message: Message) -> None:
            if message.get("more_body", False) and ctx.tap is not None:
                counted = ctx.tap.tokens_so_far
                if counted > reservation.allowed:
                    await self.limiter.go_on(reservation, counted, ctx.answering_model)
            await send(message)

        return send_if_paid
