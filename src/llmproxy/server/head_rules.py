"""Which request heads are refused although the parser takes them. No I/O.

Whoever stands in front of us, and whatever engine behind us, must read a request as we do.
What two of them could read differently is refused, not mended.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmproxy.server.refusal import Refusal
from llmproxy.types import Header

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

_PORT = rb"(?::(?:[1-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_LABEL = rb"(?:[A-Za-z0-9_~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+"
_ADDRESS = rb"\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\]"
_HOST = re.compile(rb"(?:" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?|" + _ADDRESS + rb")" + _PORT)
_TARGET = re.compile(rb"/[\x21-\x22\x24-\x7e]*")  # visible ASCII without the fragment's mark
LENGTH = re.compile(rb"[0-9]{1,18}")
_VALUE = re.compile(rb"(?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
_BLANK = b" \t"
# The parser takes tabs off that others leave on: they would see another host or framing.
_NAMED = 32  # bytes of a line that show which of those fields it is
_TABBED = re.compile(rb"\n(?:host|content-length|transfer-encoding):[^\r\n]*\t", re.IGNORECASE)


_ALLOW = ((b"allow", b", ".join(sorted(METHODS))),)


class Head(NamedTuple):
    """A request head that every reader understands in the same way."""

    path: bytes
    query: bytes
    headers: list[Header]
    length: int | None  # None with chunked, 0 without a body
    keep_alive: bool
    expects_continue: bool
    old: bool  # HTTP/1.0


def check_head(
    raw: bytes, method: bytes, target: bytes, version: str, headers: Sequence[Header]
) -> Head:
    """Return what a head says, or raise `Refusal`. Names are in lower case already.

    `raw` are the bytes that it was read from, and may be more.
    """
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "invalid_request", "Use HTTP/1.1.")
    # The parser takes several blanks, and RTSP for HTTP.
    line = b"%b %b HTTP/%b\r\n" % (method, target, version.encode())
    if not raw.startswith(line) and not raw.startswith(b"\r\n" + line):
        raise Refusal(400, "invalid_request", "The request line is malformed.")
    if b"\t" in raw and _TABBED.search(raw[: raw.find(b"\r\n\r\n", 2)]):
        raise Refusal(400, "invalid_request", "A header field is malformed.")
    if method not in METHODS:
        raise Refusal(405, "method_not_allowed", "This method is not served here.", _ALLOW)
    if not _TARGET.fullmatch(target):
        raise Refusal(400, "invalid_request", "The request target must be a path.")
    path, _, query = target.partition(b"?")

    hosts: list[bytes] = []
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    kept: list[Header] = []
    connection = expect = b""
    authorizations = 0
    for header in headers:
        name, value = header
        if not name or not _VALUE.fullmatch(value):
            value = value.rstrip(_BLANK)  # the parser leaves it on
            header = (name, value)
            if not name or not _VALUE.fullmatch(value):
                raise Refusal(400, "invalid_request", "A header field is malformed.")
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            encodings.append(value)
        elif name == b"connection":
            connection += b"," + value.lower()
        elif name == b"expect":
            expect += value.lower()
        elif name == b"authorization":
            authorizations += 1
        elif b"_" in name:
            continue  # some servers read X_Tenant as X-Tenant; nobody here may
        kept.append(header)

    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise Refusal(400, "invalid_request", "Send exactly one Host header.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Refusal(400, "invalid_request", "The Host header is malformed.")
    if authorizations > 1:
        raise Refusal(400, "invalid_request", "Send one Authorization header.")
    if expect and expect != b"100-continue":
        raise Refusal(417, "invalid_request", "Only `Expect: 100-continue` is understood.")
    tokens = {token.strip() for token in connection.split(b",")} if connection else set()
    keep_alive = version == "1.1" and b"close" not in tokens
    return Head(
        path=path,
        query=query,
        headers=kept,
        length=_length(version, lengths, encodings),
        keep_alive=keep_alive,
        expects_continue=bool(expect) and version == "1.1",
        old=version == "1.0",
    )


def condensed(raw: bytes) -> bytes:
    """Return what `check_head` will ask of the beginning of a head, in fewer bytes.

    That is the first line, and which fields have a tab. The parser holds the rest already.
    """
    first = raw.find(b"\n", 2) + 1  # an empty line may precede it
    if not first:
        return raw
    *complete, last = raw[first:].split(b"\n")
    tabbed = b"".join(line[:_NAMED] + b"\t\r\n" for line in complete if b"\t" in line)
    if len(last) > 2 * _NAMED:
        tab = b"\t" if b"\t" in last else b""
        last = last[:_NAMED] + tab + last[-1:]  # which may be half of a line end
    return raw[:first] + tabbed + last


def _length(version: str, lengths: list[bytes], encodings: list[bytes]) -> int | None:
    if encodings:
        # RFC 9112 would let the length be ignored; smugglers live on servers that do.
        if lengths or version == "1.0":
            raise Refusal(400, "invalid_request", "The length of the body is given twice.")
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise Refusal(501, "invalid_request", "The only transfer encoding here is chunked.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not LENGTH.fullmatch(lengths[0]):
        raise Refusal(400, "invalid_request", "The Content-Length header is malformed.")
    return int(lengths[0])
