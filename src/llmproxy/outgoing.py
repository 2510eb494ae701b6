"""The body of a request as one server gets it.

These are the caller's own bytes, but for what a server has to be told otherwise: the name of the
model, and how much the caller matters.
"""

from llmproxy.context import RequestContext
from llmproxy.errors import present
from llmproxy.protocol.model_field import with_model
from llmproxy.protocol.priority_field import with_priority
from llmproxy.protocol.request_options import class_of
from llmproxy.routing.course import Attempt
from llmproxy.routing.server import Server
from llmproxy.upload import IncomingUpload

_SCHEDULED = frozenset({"chat", "completions", "responses", "messages"})


def body_for(attempt: Attempt, ctx: RequestContext) -> bytes | None:
    """Return the body for an attempt; None where it is the request's own."""
    body = ctx.outgoing if ctx.outgoing is not None else ctx.body
    asked = present(ctx.inference, "inference")
    if not isinstance(body, bytes):
        if isinstance(body, IncomingUpload) and attempt.model is not None:
            body.name(attempt.model)
        return None
    if not asked.prompt_bytes:
        return None  # there is none, or one that could not be read: nothing can be put in
    going = body
    if attempt.model is not None and attempt.model != asked.model:
        going = with_model(going, attempt.model)
    going = with_class(going, attempt.server, ctx)
    return going if going is not body else None


def with_class(body: bytes, server: Server, ctx: RequestContext) -> bytes:
    """Return a body with the caller's class in it, where the server goes by that."""
    upstream = server.upstream
    if not upstream.priority or present(ctx.endpoint, "endpoint").name not in _SCHEDULED:
        return body
    most = ctx.principal.priority if ctx.principal is not None else 0
    return with_priority(body, class_of(ctx.fields, most), upstream.preset)
