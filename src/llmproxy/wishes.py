"""What matters of a request for where it goes.

Reads nothing that is not known before it is sent anywhere.
"""

from functools import partial

from llmproxy.context import RequestContext
from llmproxy.errors import present
from llmproxy.rate_limit.openai_headers import BUDGET_REACHED
from llmproxy.routing.router import Wish
from llmproxy.routing.rules import Facts
from llmproxy.types import Scope


def wish_of(scope: Scope, ctx: RequestContext) -> Wish:
    """Return what matters of a request for where it goes."""
    body = ctx.body if ctx.body is not None else b""
    assert ctx.path is not None
    assert ctx.endpoint is not None
    assert ctx.inference is not None
    return Wish(
        scope["method"],
        ctx.path,
        ctx.fields,
        ctx.endpoint,
        ctx.inference,
        body if isinstance(body, bytes) else None,
        ctx.principal.id if ctx.principal is not None else None,
        partial(facts_of, ctx),
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
        over_budget=BUDGET_REACHED in ctx.limit_lines,
    )
