"""Heads: what we write, and how an answer's head delimits its body. No I/O."""

from enum import Enum, auto

from llmproxy.errors import InvalidRequest
from llmproxy.transport.interface import Outgoing
from llmproxy.types import Header

EXPECTS_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


class Framing(Enum):
    """Where a body ends."""

    NONE = auto()  # there is none
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # with the connection
    INVALID = auto()  # two readers could disagree


def framing_of(status: int, headers: list[Header], to_head: bool) -> tuple[Framing, bool]:
    """Return how the body is delimited, and whether the connection may be used again."""
    length: bytes | None = None
    encoding: bytes | None = None
    keep_alive = True
    for name, value in headers:
        if name == b"content-length":
            if (length is not None and length != value) or not value.isdigit():
                return Framing.INVALID, False
            length = value
        elif name == b"transfer-encoding":
            if encoding is not None or value.lower() != b"chunked":
                return Framing.INVALID, False
            encoding = value
        elif name == b"connection" and b"close" in value.lower():
            keep_alive = False
    if not 200 <= status <= 599 or (length is not None and encoding is not None):
        return Framing.INVALID, False
    if to_head or status in (204, 304):
        return Framing.NONE, keep_alive
    if encoding is not None:
        return Framing.CHUNKED, keep_alive
    if length is not None:
        return Framing.LENGTH, keep_alive
    return Framing.CLOSE, False


def head_size(headers: list[Header]) -> int:
    """Return about how many bytes a head has taken on the wire."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def write_head(outgoing: Outgoing) -> bytes:
    """Return the head of a request, its framing included."""
    body = outgoing.body
    repeated = outgoing.repeated
    if repeated.written is None:
        repeated.written = b"".join([b"%b: %b\r\n" % header for header in repeated.headers])
    lines = [b"%b %b HTTP/1.1\r\n%b" % (outgoing.method, outgoing.target, repeated.written)]
    lines += [b"%b: %b\r\n" % header for header in outgoing.headers]
    if isinstance(body, bytes):
        if body or outgoing.method in EXPECTS_BODY:
            lines.append(b"content-length: %d\r\n" % len(body))
    elif body.length is not None:
        lines.append(b"content-length: %d\r\n" % body.length)
    else:
        lines.append(b"transfer-encoding: chunked\r\n")
    head = b"".join(lines)
    # Whatever server we run under has refused these already. Should one let them through,
    # a caller could write a second request into ours.
    count = len(repeated.headers) + len(lines)
    if head.count(b"\r") != count or head.count(b"\n") != count or b"\0" in head:
        raise InvalidRequest("A header or the path holds a character that it may not hold.")
    if b" " in outgoing.target:
        raise InvalidRequest("The path holds a character that it may not hold.")
    return head + b"\r\n"
