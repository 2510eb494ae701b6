"""Hold each caller to its limits and budgets.

Reserves before anything is asked for, and settles once, whatever becomes of the request.

Reads:  answering_model, attempts, client, endpoint, inference, principal, status, tap
Writes: charged, limit_lines
Raises: LayerMissing, QuotaSpent, RateLimited, StoreUnavailable
"""

import asyncio

from llmproxy.cleanup import finish
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import ClientGone, missing
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.reservation import Reservation, Ticket
from llmproxy.records import Usage
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send

SETTLE_WITHIN = 2.0  # seconds: long enough for a slow store, short enough for a shutdown


class RateLimitMiddleware:
    """Reserve what a request may take, settle what it took."""

    def __init__(self, app: ASGIApp, *, limiter: Limiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx, limiter = get_context(scope), self.limiter
        endpoint, asked = ctx.endpoint, ctx.inference
        if endpoint is None or asked is None:
            raise missing("endpoint" if endpoint is None else "inference")
        held: Reservation | Ticket
        if limiter.at_once is not None:
            held = limiter.reserve_now(ctx.principal, ctx.client, endpoint, asked)
        else:
            held = await limiter.reserve(ctx.principal, ctx.client, endpoint, asked)
        ctx.limit_lines = held.head_lines
        if held.plan.cut and isinstance(held, Reservation):
            send = self._asking(ctx, held, send)
        left = False
        try:
            await self.app(scope, receive, send)
        except (asyncio.CancelledError, ClientGone):
            left = True
            raise
        finally:
            tap, status, usage = ctx.tap, ctx.status, None
            try:
                if left or tap is None or status is None or status >= 400:
                    usage = self._usage(ctx, held, left)
                else:
                    usage = tap.usage("counted")
            finally:  # whatever an answer has in it: what is held must be given back
                if isinstance(held, Ticket):
                    # Nothing in it waits, so nothing can interrupt it.
                    limiter.settle_ticket(held, usage, tap)
                elif held.plan.lines:
                    await self._settle(ctx, held, usage)

    async def _settle(self, ctx: RequestContext, held: Reservation, usage: Usage | None) -> None:
        limiter, model = self.limiter, ctx.answering_model
        if limiter.at_once is not None:
            limiter.settle_now(held, usage, ctx.tap, model)
        else:
            await finish(limiter.settle(held, usage, ctx.tap, model), within=SETTLE_WITHIN)

    def _usage(
        self, ctx: RequestContext, reservation: Reservation | Ticket, left: bool
    ) -> Usage | None:
        """Return what is charged; None when nobody has counted and the estimate has to do."""
        policy = self.limiter.charge_cancelled if left else "counted"
        if ctx.status is None:
            if left and ctx.attempts and policy == "counted":
                read = reservation.estimate.read()
                ctx.charged = read
                return read
            return Usage()  # nothing came of it
        if ctx.status >= 400:
            return Usage()
        usage = ctx.tap.usage(policy) if ctx.tap is not None else None
        if usage is None and policy != "counted":
            usage = Usage()
        if left:
            ctx.charged = usage
        return usage

    def _asking(self, ctx: RequestContext, reservation: Reservation, send: Send) -> Send:
        """Ask, while a stream runs, whether there is still a budget for it."""

        async def send_if_paid(message: Message) -> None:
            if message.get("more_body", False) and ctx.tap is not None:
                counted = ctx.tap.tokens_so_far
                if counted > reservation.allowed:
                    await self.limiter.go_on(reservation, counted, ctx.answering_model)
            await send(message)

        return send_if_paid
