"""Heads: what we write, and how an answer's head delimits its body. No I/O."""

import re
from collections.abc import Sequence
from enum import Enum, auto

from llmproxy.errors import InvalidRequest
from llmproxy.transport.interface import Outgoing
from llmproxy.types import Header

EXPECTS_BODY = frozenset({b"POST", b"PUT", b"PATCH"})
_NOT_IN_TARGET = re.compile(rb"[ \r\n\0]")


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
    method, target, headers, body, repeated, _, _ = outgoing
    if not method.isalpha() or _NOT_IN_TARGET.search(target):
        raise InvalidRequest("The path holds a character that it may not hold.")
    if repeated.written is None:
        repeated.written = _lines(repeated.headers)
    framing = b""
    if isinstance(body, bytes):
        if body or method in EXPECTS_BODY:
            framing = b"content-length: %d\r\n" % len(body)
    elif body.length is not None:
        framing = b"content-length: %d\r\n" % body.length
    else:
        framing = b"transfer-encoding: chunked\r\n"
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    return b"".join((line, repeated.written, _lines(headers), framing, b"\r\n"))


def _lines(headers: Sequence[Header]) -> bytes:
    """Return headers as they stand in a head.

    Whatever server we run under has refused other line ends in them already. Should one let
    them through, a caller could write a second request into ours.
    """
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    count = len(headers)
    if lines.count(b"\r") != count or lines.count(b"\n") != count or b"\0" in lines:
        raise InvalidRequest("A header holds a character that it may not hold.")
    return lines
