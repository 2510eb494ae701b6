"""Writes errors the way the caller's protocol has them."""

from llmproxy import codec
from llmproxy.errors import ProxyError
from llmproxy.records import Ending


def error_object(error: ProxyError) -> dict[str, dict[str, str | None]]:
    """Return OpenAI's error object."""
    return {
        "error": {
            "message": error.detail,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def last_event(error: ProxyError, ending: Ending) -> bytes:
    """Return what tells the reader of a stream that it will not be finished."""
    body = error_object(error)
    if ending is Ending.NDJSON:
        return codec.dumps(body) + b"\n"
    if ending is Ending.MESSAGES:
        detail = {"type": "api_error", "message": error.detail, "code": error.code}
        return b"event: error\ndata: %b\n\n" % codec.dumps({"type": "error", "error": detail})
    if ending is Ending.RESPONSES:
        fields = {"type": "error", "code": error.code, "message": error.detail, "param": None}
        return b"event: error\ndata: %b\n\n" % codec.dumps(fields)
    return b"data: %b\n\n" % codec.dumps(body)
