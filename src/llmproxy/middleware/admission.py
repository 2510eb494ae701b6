"""Let only so many requests be at work, and have the others wait for their turn.

Further out than it stands only what decides at once, so that a slot is held for no longer than
a model server is at work. Lists of models and what manages the servers go past it.

Reads:  client, endpoint, fields, principal, queued, started_at, tap
Writes: queued
Raises: DeadlineTooShort, InvalidRequest, Overloaded
"""

import asyncio
import math

from llmproxy import clock
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import present
from llmproxy.metrics import Metrics
from llmproxy.protocol.request_options import class_of, deadline_of
from llmproxy.rate_limit.fairness import Place, State
from llmproxy.rate_limit.queue import Admission
from llmproxy.types import ASGIApp, Receive, Scope, Send

NOT_HELD_UP = frozenset({"models", "management"})  # endpoints
NOBODY = ""  # whose requests they are when not even an address is known


class AdmissionMiddleware:
    """A slot for each request, given back however it ends."""

    def __init__(
        self, app: ASGIApp, *, admission: Admission, metrics: Metrics, total: float
    ) -> None:
        self.app = app
        self.admission = admission
        self.metrics = metrics
        self.total = total  # seconds that any request may take; 0 = no limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx = get_context(scope)
        if present(ctx.endpoint, "endpoint").name in NOT_HELD_UP:
            await self.app(scope, receive, send)
            return

        who = ctx.principal
        if who is not None:
            key, weight = who.id, who.weight
        else:
            key, weight = ctx.client or NOBODY, 1.0
        level = class_of(ctx.fields, who.priority if who is not None else 0)
        place = self.admission.take(key, weight, level)
        if place is None:
            place = await self._wait(ctx, key, weight, level)
        try:
            await self.app(scope, receive, send)
        finally:
            # However it ended: what was counted is what the key was served. Where nobody has
            # counted it stays charged with what is usual, so hanging up early gains nothing.
            served = None
            try:
                usage = ctx.tap.usage("counted") if ctx.tap is not None else None
                if usage is not None:
                    served = usage.total
            finally:
                self.admission.leave(place, served)  # a slot that is lost is lost for ever

    async def _wait(self, ctx: RequestContext, key: str, weight: float, level: int) -> Place:
        called = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not called.done():
                called.set_result(None)

        deadline = deadline_of(ctx.started_at, ctx.fields, self.total)
        began = clock.now()
        place = self.admission.wait(key, weight, level, deadline=deadline, wake=wake)
        self.metrics.waiting(+1)
        try:
            limit = place.until - began
            async with asyncio.timeout(None if limit == math.inf else limit):
                await called
        except TimeoutError:
            pass  # unless the turn came in this very moment
        except BaseException:
            self.admission.leave(place, 0)
            raise
        finally:
            self.metrics.waiting(-1)
            ctx.queued = clock.now() - began
            self.metrics.waited(ctx.queued)
        if place.state is not State.RUNNING:
            raise self.admission.refusal(place)
        return place
