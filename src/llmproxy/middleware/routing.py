"""Send each request where it can be answered, and elsewhere when that fails.

Reads:  body, endpoint, fields, inference, limit_headers, path, principal, started_at
Writes: paused
Raises: ModelNotFound, NoUpstream, Overloaded
"""

from functools import partial

from llmproxy import clock, codec
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import NoUpstream, present
from llmproxy.journey import Journey, Rescue
from llmproxy.metrics import Metrics
from llmproxy.protocol.endpoints import MODELS
from llmproxy.protocol.request_options import deadline_of
from llmproxy.rate_limit.openai_headers import BUDGET_REACHED
from llmproxy.records import Ending
from llmproxy.routing.catalogue import Catalogue
from llmproxy.routing.course import Course, Full, Turn, Unknown
from llmproxy.routing.kept import KeptStream, Room
from llmproxy.routing.places import Places
from llmproxy.routing.router import Router, Wish
from llmproxy.routing.rules import Facts
from llmproxy.types import ASGIApp, Receive, Scope, Send


class RoutingMiddleware:
    """Finds a server, and another one."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        router: Router,
        catalogue: Catalogue,
        places: Places,
        rescue: Rescue,
        first_token: float,
        total: float,
        metrics: Metrics,
        room: Room,
    ) -> None:
        """`first_token` is when a stream is tried elsewhere, `total` when all must be over;
        in seconds, 0 = never."""
        self.app = app
        self.router = router
        self.catalogue = catalogue
        self.places = places
        self.rescue = rescue
        self.first_token = first_token
        self.total = total
        self.metrics = metrics
        self.room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        ctx = get_context(scope)
        if ctx.endpoint is MODELS and scope["method"] in ("GET", "HEAD"):
            listed = await self.catalogue.answer(present(ctx.path, "path"))
            if listed is not None:
                await _answer(send, listed)
                return
        deadline = deadline_of(ctx.started_at, ctx.fields, self.total)
        course, turn = await self._first(ctx, wish_of(scope, ctx), deadline)
        kept = self._kept(ctx)
        journey = Journey(
            partial(self.app, scope, receive),
            send,
            ctx,
            course,
            kept=kept,
            rescue=self.rescue,
            first_token=self.first_token,
            deadline=deadline,
            places=self.places,
            metrics=self.metrics,
        )
        try:
            await journey.run(turn)
        finally:
            ctx.paused += journey.paused
            if kept is not None:
                kept.close()

    async def _first(
        self, ctx: RequestContext, wish: Wish, deadline: float
    ) -> tuple[Course, Turn]:
        """Return whom to ask, once somebody may be asked."""
        course = self.router.course(wish)
        until, waited, refreshed = 0.0, False, False
        while True:
            try:
                if not waited and self.places.are_waited_for(course.model):
                    raise Full(course.model)
                return course, course.first()
            except Full as full:
                began = clock.now()
                until = until or self.places.until(deadline)
                try:
                    await self.places.wait(full.model, until=until, first=waited)
                finally:
                    ctx.paused += clock.now() - began
                waited = True
            except Unknown as unknown:
                if refreshed:
                    if not self.router.registry.servers:
                        raise NoUpstream("No model server is known at the moment.") from None
                    raise unknown.refusal() from None
                await self.catalogue.refresh()
                refreshed = True
            course = self.router.course(wish)

    def _kept(self, ctx: RequestContext) -> KeptStream | None:
        """Return what keeps a stream, if it could be gone on with."""
        asked = present(ctx.inference, "inference")
        if self.rescue == "off" or not asked.stream or asked.choices != 1:
            return None
        text = present(ctx.endpoint, "endpoint").ending is Ending.CHAT
        if text and isinstance(ctx.body, bytes) and len(self.router.registry.servers) > 1:
            return KeptStream(self.room)
        return None


def wish_of(scope: Scope, ctx: RequestContext) -> Wish:
    """Return what matters of a request for where it goes."""
    body = ctx.body if ctx.body is not None else b""
    return Wish(
        method=scope["method"],
        path=present(ctx.path, "path"),
        fields=ctx.fields,
        endpoint=present(ctx.endpoint, "endpoint"),
        asked=present(ctx.inference, "inference"),
        body=body if isinstance(body, bytes) else None,
        key=ctx.principal.id if ctx.principal is not None else None,
        facts=partial(facts_of, ctx),
    )


def facts_of(ctx: RequestContext) -> Facts:
    """Return what rules may ask for."""
    asked = present(ctx.inference, "inference")
    who = ctx.principal
    return Facts(
        tier=who.tier if who is not None else None,
        team=who.team if who is not None else None,
        tags=who.tags if who is not None else frozenset(),
        model=asked.model,
        prompt_bytes=asked.prompt_bytes,
        body=ctx.body if isinstance(ctx.body, bytes) else b"",
        over_budget=BUDGET_REACHED in ctx.limit_headers,
    )


async def _answer(send: Send, document: object) -> None:
    body = codec.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
