"""Values for tests that need one and do not care which."""

from typing import Any

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.protocol.endpoints import CHAT
from llmproxy.records import InferenceRequest

SET = {
    "endpoint": CHAT,
    "path": b"/v1/chat/completions",
    "body": b"{}",
    "inference": InferenceRequest(model="llama", stream=False),
}


def make_context(**changed: Any) -> RequestContext:
    """Return the context of a chat request whose body has been read."""
    ctx = RequestContext(
        request_id="request-1",
        engine_id="engine-1",
        started_at=clock.now(),
        fields={b"content-type": b"application/json", b"content-length": b"2"},
    )
    for name, value in {**SET, **changed}.items():
        setattr(ctx, name, value)
    return ctx
