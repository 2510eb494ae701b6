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
    Case("H05", "one long extension", chunks(b"7;a=" + b"x" * 80_000 + b"\r\n" + BODY)),
    Case("H05", "an endless size", chunks(b"0" * 80_000 + b"7\r\n" + BODY)),
    Case("H05", "long trailers", chunks(b"0\r\n" + (b"X: " + b"x" * 8000 + b"\r\n") * 12)),
]
HOSTS = [
    Case("H06", name, hosted(*lines))
    for name, lines in {
        "no Host": (),
        "two Hosts": (HOST, b"Host: other.test\r\n"),
        "the same Host twice": (HOST, HOST),
        "an empty Host": (b"Host:\r\n",),
        "a Host and an empty one": (HOST, b"Host: \r\n"),
        "two Hosts in one": (b"Host: a.test, b.test\r\n",),
        "a blank before the colon": (b"Host : proxy.test\r\n",),
        "a Host and one with a blank": (HOST, b"Host : other.test\r\n"),
    }.items()
] + [
    Case("H06", f"Host {value!r}".replace("'", ""), hosted(b"Host: " + value.encode() + b"\r\n"))
    for value in (
        *("a/b", "a?b", "a#b", "a b", "u@a", "u:p@a", "http://a", "a\\b", "a\tb", "<a>", "a|b"),
        *("a:b", "a:", "a:-1", "a:80:80", ":80", "a:999999", "[::1", "::1", "[g]", "[::1]x", "a,b"),
        *("a\x00", "a\x7f", '"a"', "a^b", "a`b", "{a}", "%zz", "a:65536"),
    )
]
TARGETS = [
    Case("H07", "absolute form", get(b"http://other.test/v1/models")),
    Case("H07", "absolute form of our own", get(b"http://proxy.test/v1/models")),
    Case("H07", "absolute form in TLS", get(b"https://proxy.test/v1/models")),
    Case("H07", "asterisk with GET", get(b"*")),
    Case("H07", "a fragment", get(b"/v1/models#a")),
    Case("H07", "authority form with GET", get(b"proxy.test:80")),
    Case("H07", "a path without a slash", get(b"v1/models")),
    Case("H07", "no target", b"GET HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "no target but two blanks", b"GET  HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "a blank in the target", get(b"/v1/models a")),
    Case("H07", "a tab in the target", get(b"/v1/mod\tels")),
    Case("H07", "a null in the target", get(b"/v1/mod\x00els")),
    Case("H07", "a high byte in the target", get(b"/v1/mod\xc3\xa9ls")),
    Case("H07", "a control character in the target", get(b"/v1/mod\x7fels")),
    Case("H07", "two blanks before the target", b"GET  /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "two blanks behind the target", b"GET /v1/models  HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "a tab before the target", b"GET\t/v1/models HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "a tab behind the target", b"GET /v1/models\tHTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("H07", "a blank before the method", b" " + get(b"/v1/models")),
    Case("H07", "a blank behind the version", get(b"/v1/models", version=b"HTTP/1.1 ")),
    Case("H07", "a blank in the version", get(b"/v1/models", version=b"HTTP/1. 1"), VERSION),
    Case("H07", "only LF behind the request line", b"GET /v1/models HTTP/1.1\n" + HOST + b"\r\n"),
    Case("H07", "only CR behind the request line", b"GET /v1/models HTTP/1.1\r" + HOST + b"\r\n"),
    Case("H07", "LF everywhere", get(b"/v1/models").replace(b"\r\n", b"\n")),
    Case("H07", "CR everywhere", get(b"/v1/models").replace(b"\r\n", b"\r") + b"\r\n\r\n"),
    Case("H07", "a bare LF in front", b"\n" + get(b"/v1/models")),
    Case("H07", "a bare CR in front", b"\r" + get(b"/v1/models")),
    Case("H07", "HTTP/0.9", b"GET /v1/models\r\n\r\n", VERSION),
    Case("H07", "the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", VERSION),
    Case("H07", "a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    Case("H07", "a SOCKS greeting", b"\x05\x01\x00\r\n\r\n"),
    Case("H07", "a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
] + [
    Case("H07", f"version {version}", get(b"/v1/models", version=version.encode()), VERSION)
    for version in (
        *("HTTP/0.9", "HTTP/1.9", "HTTP/1.2", "HTTP/2.0", "HTTP/2", "HTTP/3.0", "HTTP/1"),
        *("HTTP/01.1", "HTTP/1.01", "HTTP/11.1", "HTTP/1.1.1", "HTTP/1,1", "http/1.1", "HTTPS/1.1"),
        *("HTTP1.1", "HTTP-1.1", "HTTP/+1.1", "HTTP/1.1a", "HTTP /1.1", "RTSP/1.0", "ICE/1.0"),
    )
]
METHODS = [
    Case("H08", f"method {name!r}".replace("'", ""), name.encode() + get(PATH)[3:], UNSERVED)
    for name in (
        *("TRACE", "TRACK", "PROPFIND", "PURGE", "LOCK", "SOURCE", "QUERY", "FOO", "get", "Get"),
        *("GE T", "GET\x00", "G3T", "", "GET,", "(GET)", "M-SEARCH", "PRI", "DESCRIBE", "SETUP"),
    )
] + [
    Case(
        "H08", "CONNECT", b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test\r\n\r\n", UNSERVED
    ),
    Case("H08", "CONNECT with a path", b"CONNECT / HTTP/1.1\r\n" + HOST + b"\r\n", UNSERVED),
    Case("H08", "asterisk with OPTIONS", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"),
]
PATHS = [
    Case(
        "H09",
        f"path {path}",
        get(path.encode()).replace(HOST, HOST + b"Connection: close\r\n"),
        NOWHERE,
    )
    for path in (
        *(
            "/v1/../admin",
            "//v1/models",
            "/v1//models",
            "/v1/./models",
            "/v1/models/..",
            "/V1/models",
        ),
        *("/v1/%2e%2e/admin", "/v1/%2E%2e/admin", "/v1/.%2e/admin", "/v1%2fmodels", "/v1/a%2fb"),
        *("/v1/%5cadmin", "/v1/models%00", "/v1/models%0d%0a", "/v1/%c0%ae%c0%ae/admin", "/v1/a%"),
        *("/v1/models;x", "/v1/a;x/b", "/v1\\models", "/v1/%zz", "/v1/%2", "/v1/..;/admin"),
    )
]
FIELDS = [
    Case("H10", name, with_line(line))
    for name, line in {
        "a blank before the colon": b"X-Tenant : a\r\n",
        "a tab before the colon": b"X-Tenant\t: a\r\n",
        "a blank in the name": b"X Tenant: a\r\n",
        "folded with a blank": b"X: a\r\n b\r\n",
        "folded with a tab": b"X: a\r\n\tb\r\n",
        "folded at once": b"X:\r\n a\r\n",
        "a null in the value": b"X: a\x00b\r\n",
        "a CR in the value": b"X: a\rb\r\n",
        "an LF in the value": b"X: a\nb: c\r\n",
        "a CR before the line end": b"X: a\r\r\n",
        "a control character in the value": b"X: a\x01b\r\n",
        "a delete in the value": b"X: a\x7fb\r\n",
        "no name": b": a\r\n",
        "no colon": b"X\r\n",
        "only a colon": b":\r\n",
        "brackets in the name": b"[X]: a\r\n",
        "a null in the name": b"X\x00: a\r\n",
        "a high byte in the name": b"X\xe9: a\r\n",
        "a quote in the name": b'"X": a\r\n',
        "a slash in the name": b"X/Y: a\r\n",
        "an at in the name": b"X@Y: a\r\n",
        "two Authorizations": b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
    }.items()
] + [
    Case(
        "H10",
        "a blank before the first field",
        LINE + b" X: a\r\n" + HOST + LENGTH + b"\r\n" + BODY,
    ),
    Case("H10", "a line of blanks", with_line(b" \r\n")),
    Case("H10", "an LF before the end", LINE + HOST + LENGTH + b"\n" + b"\r\n" + BODY),
    Case("H10", "a CR before the end", LINE + HOST + LENGTH + b"\r" + b"\r\n" + BODY),
]
SIZES = [
    Case(
        "H11",
        "a head too large",
        post(*[b"X-%d: %b\r\n" % (i, b"x" * 4000) for i in range(9)]),
        SIZE,
    ),
    Case("H11", "a field too large", with_line(b"X: " + b"x" * 8200 + b"\r\n"), SIZE),
    Case("H11", "a name too large", with_line(b"x" * 8200 + b": a\r\n"), SIZE),
    Case("H11", "too many fields", with_line(b"X: a\r\n" * 101), SIZE),
    Case("H11", "a target too long", get(b"/v1/models?" + b"x" * 8200), SIZE),
    Case("H11", "a path too long", get(b"/v1/" + b"x" * 8200), SIZE),
    Case("H11", "a target that never ends", b"GET /" + b"x" * 40_000, SIZE),
    Case(
        "H11",
        "a head that never ends",
        LINE + HOST + b"X: a\r\n" * 90 + b"Y: " + b"x" * 40_000,
        SIZE,
    ),
    Case(
        "H11",
        "a large head at once",
        LINE + HOST + b"X: %b\r\n" % (b"x" * 8000) * 20 + b"\r\n",
        SIZE,
    ),
]
EXPECTATIONS = [
    Case("H14", "another expectation", with_line(b"Expect: 200-ok\r\n"), frozenset({417})),
    Case("H14", "two expectations", with_line(b"Expect: 100-continue, x\r\n"), frozenset({417})),
    Case("H14", "one twice", with_line(b"Expect: 100-continue\r\n" * 2), frozenset({417})),
]

REFUSED = [
    *FRAMED_TWICE,
    *LENGTHS,
    *CODINGS,
    *CHUNK_SIZES,
    *PADDED,
    *HOSTS,
    *TARGETS,
    *METHODS,
    *FIELDS,
    *SIZES,
    *EXPECTATIONS,
]
