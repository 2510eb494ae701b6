"""The head that a caller gets from an engine's."""

from enum import Enum, auto

from llmproxy.headers import HOP_BY_HOP, find, named_by_connection
from llmproxy.types import Header

_DROPPED = HOP_BY_HOP | {
    # Whose browsers may call is ours to say: engines let in everybody's.
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-allow-private-network",
    b"access-control-expose-headers",
    b"access-control-max-age",
    b"alt-svc",
    b"endpoint-load-metrics",
    b"date",  # every server that we run under writes its own
    b"server",
    b"set-cookie",
    b"strict-transport-security",
    b"via",
    b"x-powered-by",
    b"x-request-id",
}
_OURS = b"x-llmproxy-"
LIMIT_HEADERS = frozenset(
    b"x-ratelimit-%b-%b" % (what, unit)
    for what in (b"limit", b"remaining", b"reset")
    for unit in (b"requests", b"tokens")
)
_DROPPED_WITH_LIMITS = _DROPPED | LIMIT_HEADERS

# nginx would gather a stream into its buffers without the first; browsers and caches on the
# way would keep or recode it without the second.
_STREAM_HEADERS: tuple[Header, ...] = (
    (b"x-accel-buffering", b"no"),
    (b"cache-control", b"no-cache, no-transform"),
)
# Says to a host's GZip middleware that there is nothing left to do: it would gather the
# lines of an NDJSON stream in its window until the stream ends. Event streams it spares.
_NOT_TO_BE_RECODED: Header = (b"content-encoding", b"identity")


class Kind(Enum):
    """What an answer is, by its content type: by what the engine says, not by what was asked."""

    WHOLE = auto()
    EVENTS = auto()  # server-sent events
    LINES = auto()  # newline-delimited JSON
    ENCODED = auto()  # either of them, compressed: nothing can be read in it or put into it


WHOLE = Kind.WHOLE  # looking a member up in its Enum takes three times as long


def kind_of(headers: list[Header]) -> Kind:
    """Return what kind of answer a head announces."""
    said = find(headers, b"content-type")
    if said is None or said == b"application/json":
        return WHOLE
    said = said.lower()
    if said.startswith(b"text/event-stream"):
        kind = Kind.EVENTS
    elif said.startswith((b"application/x-ndjson", b"application/jsonl")):
        kind = Kind.LINES
    else:
        return WHOLE
    return kind if find(headers, b"content-encoding") in (None, b"identity") else Kind.ENCODED


def response_headers(headers: list[Header], kind: Kind, limited: bool = False) -> list[Header]:
    """Return an engine's headers as the caller gets them.

    Without the limits of a cloud, where the caller is told of our own.
    """
    kept: list[Header] = []
    connection = False
    dropped = _DROPPED_WITH_LIMITS if limited else _DROPPED
    for header in headers:
        name = header[0]
        if name in dropped:
            connection = connection or name == b"connection"
        elif not name.startswith(_OURS) and not (name == b"location" and _is_foreign(header[1])):
            kept.append(header)
    if connection:
        named = named_by_connection(headers) - {b"content-type", b"content-length"}
        kept = [header for header in kept if header[0] not in named]
    if kind is not WHOLE:
        # A comment or an error event would make it longer than it was said to be.
        kept = [header for header in kept if header[0] != b"content-length"]
        present = {name for name, _ in kept}
        kept += [header for header in _STREAM_HEADERS if header[0] not in present]
        if kind is Kind.LINES and b"content-encoding" not in present:
            kept.append(_NOT_TO_BE_RECODED)
    return kept


def _is_foreign(location: bytes) -> bool:
    """Tell whether a redirect names a host: it would show the caller where our servers are."""
    return not location.startswith(b"/") or location.startswith(b"//")
