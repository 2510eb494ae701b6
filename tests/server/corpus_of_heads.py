"""The part of the corpus that is about request lines and header fields."""

from tests.server.corpus import (
    BODY,
    HOST,
    LENGTH,
    LINE,
    NOWHERE,
    PATH,
    SIZE,
    UNSERVED,
    VERSION,
    Case,
    get,
    hosted,
    post,
    with_line,
)

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
        *("a..b", ".a", "..", "a..", "\ta", "a\t"),
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

HEADS = [*HOSTS, *TARGETS, *METHODS, *FIELDS, *SIZES, *EXPECTATIONS]
