"""What tells that two requests belong together."""

from collections.abc import Mapping

# The order in which vLLM's router looks, so that clients written for it find the same here.
_HEADERS = (
    b"x-session-id",
    b"x-user-id",
    b"x-tenant-id",
    b"x-request-id",
    b"x-correlation-id",
    b"x-trace-id",
)


def session_of(fields: Mapping[bytes, bytes], user: str | None) -> bytes | None:
    """Return the name of the session of a request; None when it has none."""
    for name in _HEADERS:
        value = fields.get(name)
        if value:
            return name + b"=" + value
    return b"user=" + user.encode() if user else None
