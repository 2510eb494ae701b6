"""Lists of headers: names are lower-case bytes, lists are never changed in place."""

from collections.abc import Iterable, Sequence

from llmproxy.types import Header, Message

# RFC 9110 section 7.6.1, and what older peers still send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


def find(headers: Iterable[Header], name: bytes) -> bytes | None:
    """Return the first value of a header, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def find_all(headers: Iterable[Header], name: bytes) -> list[bytes]:
    """Return every value of a header."""
    return [value for key, value in headers if key == name]


def with_headers(message: Message, extra: Sequence[Header]) -> Message:
    """Return the message with headers added; the list inside it may be a constant."""
    return {**message, "headers": [*message.get("headers", ()), *extra]}


def named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    """Return the further names that a Connection header declares hop-by-hop."""
    return frozenset(
        token.strip().lower()
        for value in find_all(headers, b"connection")
        for token in value.split(b",")
    )


def as_lines(headers: Iterable[Header]) -> bytes:
    """Return headers as the lines of a head, each with its end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def of_lines(lines: bytes) -> list[Header]:
    """Return the headers that such lines stand for."""
    found = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        found.append((name, value))
    return found
