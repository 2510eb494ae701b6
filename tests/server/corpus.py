"""Raw requests and what must become of them, with their numbers in the catalogue of faults.

Most of them are in some parser's own test suite because some server once read them otherwise
than the one behind it. A new bug adds a line.
"""

from dataclasses import dataclass

BODY = b'{"a":1}'
PATH = b"/v1/chat/completions"
LINE = b"POST " + PATH + b" HTTP/1.1\r\n"
HOST = b"Host: proxy.test\r\n"
JSON = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: 7\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"7\r\n" + BODY + b"\r\n0\r\n\r\n"
BEHIND = b"GET /v1/models?behind HTTP/1.1\r\nHost: proxy.test\r\n\r\n"

MALFORMED = frozenset({400})
UNSERVED = frozenset({400, 405, 501})
CODING = frozenset({400, 501})
VERSION = frozenset({400, 505})
SIZE = frozenset({414, 431})
NOWHERE = frozenset({404})


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and with which status it is turned away."""

    fault: str
    name: str
    raw: bytes
    statuses: frozenset[int] = MALFORMED

    @property
    def id(self) -> str:
        """What pytest calls it."""
        return f"{self.fault}-{self.name.replace(' ', '_')}"


@dataclass(frozen=True, slots=True)
class Good:
    """A request that must be served; `body` is what the engine has to get of it."""

    name: str
    raw: bytes
    body: bytes = BODY

    @property
    def id(self) -> str:
        """What pytest calls it."""
        return self.name.replace(" ", "_")


def post(*lines: bytes, body: bytes = BODY) -> bytes:
    """Write a POST whose framing is among the lines."""
    return LINE + HOST + JSON + b"".join(lines) + b"\r\n" + body


def get(target: bytes, *, version: bytes = b"HTTP/1.1") -> bytes:
    """Write a GET without a body."""
    return b"GET " + target + b" " + version + b"\r\n" + HOST + b"\r\n"


def with_line(line: bytes) -> bytes:
    """Write a POST that is in order but for one line."""
    return post(line, LENGTH)


def chunks(body: bytes) -> bytes:
    """Write a POST with a chunked body, as it stands."""
    return post(CHUNKED, body=body)


def coded(value: bytes) -> bytes:
    """Write a POST with this transfer coding."""
    return post(b"Transfer-Encoding:" + value + b"\r\n", body=CHUNKS)


def counted(value: bytes) -> bytes:
    """Write a POST with this length."""
    return post(b"Content-Length:" + value + b"\r\n")


def hosted(*lines: bytes) -> bytes:
    """Write a GET with these Host lines."""
    return b"GET /v1/models HTTP/1.1\r\n" + b"".join(lines) + b"\r\n"


FRAMED_TWICE = [
    Case("H01", "length and coding", post(LENGTH, CHUNKED, body=CHUNKS)),
    Case("H01", "coding and length", post(CHUNKED, LENGTH, body=CHUNKS)),
    Case("H01", "length and coding with a request behind", post(LENGTH, CHUNKED) + BEHIND),
    Case("H01", "length zero and coding", post(b"Content-Length: 0\r\n", CHUNKED, body=CHUNKS)),
    Case("H01", "the same length twice", post(LENGTH, LENGTH)),
    Case("H01", "two lengths", post(LENGTH, b"Content-Length: 8\r\n")),
    Case("H01", "two lengths in one", counted(b" 7, 7")),
    Case("H01", "two lengths in one without a blank", counted(b" 7,7")),
    Case("H01", "a length and an empty one", post(LENGTH, b"Content-Length: \r\n")),
    Case("H01", "length and an unknown coding", post(LENGTH, b"Transfer-Encoding: x\r\n"), CODING),
]
LENGTHS = [
    Case("H02", f"length {value!r}".replace("'", ""), counted(b" " + value.encode()))
    for value in (
        *("+7", "-7", "-0", "0x7", "0o7", "7_0", "7.0", "7e0", "7a", "a7", "seven", '"7"', "7;"),
        *("7 7", "1" * 30, "9" * 19, "18446744073709551623", "7\x0b", "\x0c7", "7\x00"),
    )
] + [
    Case("H02", "a tab before the length", counted(b"\t7")),
    Case("H02", "a tab behind the length", counted(b" 7\t")),
    Case("H02", "no length behind the colon", counted(b"")),
    Case("H02", "only blanks for a length", counted(b"  ")),
    Case("H02", "a length in other digits", counted(b" \xd9\xa7")),
    Case("H02", "no colon behind Content-Length", with_line(b"Content-Length 7\r\n")),
]
CODINGS = [
    Case("H03", name, coded(value), CODING)
    for name, value in {
        "another coding": b" xchunked",
        "a coding cut short": b" chunke",
        "a coding too long": b" chunkedx",
        "identity": b" identity",
        "chunked and identity": b" chunked, identity",
        "identity and chunked": b" identity, chunked",
        "gzip and chunked": b" gzip, chunked",
        "gzip alone": b" gzip",
        "chunked twice": b" chunked, chunked",
        "chunked and a comma": b" chunked,",
        "a comma and chunked": b" , chunked",
        "chunked with a parameter": b" chunked;q=1",
        "chunked in quotes": b' "chunked"',
        "a tab before": b"\tchunked",
        "a tab after": b" chunked\t",
        "a vertical tab before": b" \x0bchunked",
        "a vertical tab after": b" chunked\x0b",
        "a form feed after": b" chunked\x0c",
        "a null after": b" chunked\x00",
        "a high byte before": b" \xffchunked",
        "no coding": b"",
        "folded": b"\r\n chunked",
        "a carriage return before": b"\rchunked",
        "a line feed before": b"\nchunked",
    }.items()
] + [
    Case("H03", "two coding fields", post(CHUNKED, CHUNKED, body=CHUNKS), CODING),
    Case(
        "H03",
        "chunked and then identity",
        post(CHUNKED, b"Transfer-Encoding: identity\r\n", body=CHUNKS),
        CODING,
    ),
    Case(
        "H03",
        "identity and then chunked",
        post(b"Transfer-Encoding: identity\r\n", CHUNKED, body=CHUNKS),
        CODING,
    ),
    Case(
        "H03",
        "coding on HTTP/1.0",
        b"POST " + PATH + b" HTTP/1.0\r\n" + HOST + JSON + CHUNKED + b"\r\n" + CHUNKS,
        CODING,
    ),
    Case("H03", "a blank before the colon", post(b"Transfer-Encoding : chunked\r\n", body=CHUNKS)),
    Case("H03", "a blank before the name", post(b" Transfer-Encoding: chunked\r\n", body=CHUNKS)),
    Case("H03", "a null in the name", post(b"Transfer-\x00Encoding: chunked\r\n", body=CHUNKS)),
    Case("H03", "behind a bare line feed", post(b"X: a\nTransfer-Encoding: chunked\r\n")),
    Case("H03", "behind a bare carriage return", post(b"X: a\rTransfer-Encoding: chunked\r\n")),
]
CHUNK_SIZES = [
    Case("H04", f"size {size!r}".replace("'", ""), chunks(size.encode() + CHUNKS[1:]))
    for size in (
        *("0x7", "+7", "-7", "7_0", "7h", "", " 7", "\t7", "7 ", "7\t", "g", "\x007", "7\x00"),
        *("1" + "0" * 16, "f" * 17, "7.0", "7,7", "7 7", ";"),
    )
] + [
    Case("H04", name, chunks(body))
    for name, body in {
        "a size without CR": b"7\n" + BODY + b"\r\n0\r\n\r\n",
        "a size without LF": b"7\r" + BODY + b"\r\n0\r\n\r\n",
        "no line end behind the data": b"7\r\n" + BODY + b"0\r\n\r\n",
        "a bare LF behind the data": b"7\r\n" + BODY + b"\n0\r\n\r\n",
        "a bare CR behind the data": b"7\r\n" + BODY + b"\r0\r\n\r\n",
        "other bytes behind the data": b"7\r\n" + BODY + b"XX0\r\n\r\n",
        "data longer than its size": b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
        "data shorter than its size": b"9\r\n" + BODY + b"\r\n0\r\n\r\n" + BEHIND,
        "a bare LF in an extension": b"7;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a bare CR in an extension": b"7;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a null in an extension": b"7;a\x00\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a bare LF in a quoted extension": b'7;a="\n"\r\n' + BODY + b"\r\n0\r\n\r\n",
        "an extension ended by LF": b"7;a\n" + BODY + b"\r\n0\r\n\r\n",
        "an extension without a size": b";a\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a last chunk ended by LF": b"7\r\n" + BODY + b"\r\n0\n\n",
        "a last line ended by LF": b"7\r\n" + BODY + b"\r\n0\r\n\n",
        "a trailer without a colon": b"7\r\n" + BODY + b"\r\n0\r\nX\r\n\r\n",
        "a trailer with a blank before its colon": b"7\r\n" + BODY + b"\r\n0\r\nX : a\r\n\r\n",
        "a folded trailer": b"7\r\n" + BODY + b"\r\n0\r\nX: a\r\n b\r\n\r\n",
        "a trailer ended by LF": b"7\r\n" + BODY + b"\r\n0\r\nX: a\n\r\n",
        "a null in a trailer": b"7\r\n" + BODY + b"\r\n0\r\nX: \x00\r\n\r\n",
    }.items()
]
PADDED = [
    Case(
        "H05",
        "a byte with a long extension each",
        chunks((b"1;a=" + b"x" * 16_384 + b"\r\nx\r\n") * 8 + b"0\r\n\r\n"),
    ),
    Case(
        "H05",
        "a whole body with much around it",
        chunks((b"1;a=" + b"x" * 16_384 + b"\r\n \r\n") * 8 + b"7\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    Case("H05", "one long extension", chunks(b"7;a=" + b"x" * 80_000 + b"\r\n" + BODY)),
    Case("H05", "an endless size", chunks(b"0" * 80_000 + b"7\r\n" + BODY)),
    Case("H05", "long trailers", chunks(b"0\r\n" + (b"X: " + b"x" * 8000 + b"\r\n") * 12)),
]

FRAMING = [*FRAMED_TWICE, *LENGTHS, *CODINGS, *CHUNK_SIZES, *PADDED]
