"""What of an engine's head a caller gets."""

import re

import pytest

from tests.support.client import Answer, request_bytes
from tests.support.rig import proxied
from tests.support.upstream import answering, scripted


async def answered(
    head: bytes, *, body: bytes = b"{}", status: bytes = b"200 OK", **settings: str
) -> Answer:
    """Return what the caller gets of an engine's answer with these header lines."""
    answer = b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, head, len(body), body)
    async with (
        scripted(answering(answer)) as engine,
        proxied(engine.upstream, **settings) as proxy,
    ):
        return await proxy.ask(request_bytes())


@pytest.mark.parametrize(
    "line",
    [
        b"Set-Cookie: session=canary",
        b"Server: canary/1.0",
        b"Alt-Svc: h3=canary",
        b"X-Powered-By: canary",
        b"Via: 1.1 canary",
        b"X-Request-Id: canary",
        b"X-LLMProxy-Upstream: canary",
        b"X-LLMProxy-Anything: canary",
        b"Keep-Alive: canary",
        b"Proxy-Authenticate: canary",
        b"Upgrade: canary",
        b"Trailer: canary",
        b"Strict-Transport-Security: canary",
    ],
    ids=lambda line: line.partition(b":")[0].decode(),
)
async def test_what_is_not_for_callers_is_dropped(line: bytes) -> None:
    """Cookies, names of software, internal addresses and headers of the hop stay behind us."""
    answer = await answered(line + b"\r\n")

    assert b"canary" not in answer.raw


EVERYBODY = b"".join(
    b"Access-Control-%b\r\n" % line
    for line in (
        b"Allow-Origin: *",
        b"Allow-Credentials: true",
        b"Allow-Methods: *",
        b"Allow-Headers: *",
        b"Allow-Private-Network: true",
        b"Expose-Headers: *",
        b"Max-Age: 600",
    )
)


@pytest.mark.parametrize("method", [b"POST", b"OPTIONS"])
@pytest.mark.parametrize(
    ("origins", "allowed"),
    [("", None), ("https://other.test", None), ("https://page.test", b"https://page.test")],
    ids=["nobody", "another", "this_one"],
)
async def test_an_engine_does_not_say_whose_browsers_may_call(
    origins: str, allowed: bytes | None, method: bytes
) -> None:
    """Most of them let in the pages of everybody."""
    answer = b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n\r\n{}" % EVERYBODY
    settings = {"cors_origins": origins} if origins else {}
    async with (
        scripted(answering(answer)) as engine,
        proxied(engine.upstream, **settings) as proxy,
    ):
        headers = [
            (b"origin", b"https://page.test"),
            (b"access-control-request-method", b"POST"),
        ]
        got = await proxy.ask(request_bytes(method=method, headers=headers))

    assert got.header(b"access-control-allow-origin") == allowed
    assert got.header(b"access-control-allow-credentials") is None
    assert got.header(b"access-control-allow-private-network") is None
    assert (got.header(b"access-control-expose-headers") or b"x-request-id") != b"*"


async def test_a_header_named_by_connection_is_dropped() -> None:
    """The engine's hop-by-hop headers end here as well."""
    answer = await answered(b"connection: x-internal, close\r\nx-internal: canary\r\nx-kept: 1\r\n")

    assert answer.header(b"x-internal") is None
    assert answer.header(b"x-kept") == b"1"


async def test_the_date_is_that_of_one_server() -> None:
    """The one we run under writes its own: two dates would be none."""
    answer = await answered(b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n")

    date = answer.header(b"date")
    assert date is not None and b"1970" not in date


async def test_there_is_no_server_header() -> None:
    """Nobody needs to know what runs here."""
    answer = await answered(b"server: engine\r\n")

    assert answer.header(b"server") is None


@pytest.mark.parametrize(
    "location",
    [b"http://10.0.0.7:8000/v1/x", b"//10.0.0.7/x", b"https://engine.internal/"],
    ids=["absolute", "without_scheme", "https"],
)
async def test_a_redirect_to_another_host_loses_its_target(location: bytes) -> None:
    """It would show the caller where our servers are."""
    answer = await answered(b"location: %b\r\n" % location, status=b"307 Temporary Redirect")

    assert answer.status == 307
    assert answer.header(b"location") is None


async def test_a_redirect_on_the_same_host_is_passed_on() -> None:
    """A path is the caller's to follow."""
    answer = await answered(b"location: /v1/files/7\r\n", status=b"303 See Other")

    assert answer.header(b"location") == b"/v1/files/7"


async def test_every_answer_says_who_gave_it() -> None:
    """Ids and the upstream's name make a complaint traceable."""
    answer = await answered(b"")

    assert answer.header(b"x-llmproxy-upstream") == b"engine"
    assert answer.header(b"x-llmproxy-attempts") == b"1"
    assert re.fullmatch(rb"[0-9a-f]{32}", answer.header(b"x-request-id") or b"")


async def test_other_headers_come_as_the_engine_sent_them() -> None:
    """Repeated ones stay apart and in their order, limits and processing times included."""
    answer = await answered(
        b"x-a: 1\r\nopenai-processing-ms: 7\r\nx-a: 2\r\nx-ratelimit-remaining-tokens: 5\r\n"
    )

    assert [header for header in answer.headers if header[0] == b"x-a"] == [
        (b"x-a", b"1"),
        (b"x-a", b"2"),
    ]
    assert answer.header(b"openai-processing-ms") == b"7"
    assert answer.header(b"x-ratelimit-remaining-tokens") == b"5"


async def test_who_is_told_of_our_limits_is_not_told_of_those_behind_us() -> None:
    """A cloud's are between it and us."""
    theirs = b"x-ratelimit-limit-requests: 9000\r\nx-ratelimit-reset-tokens: 7s\r\nx-a: 1\r\n"

    answer = await answered(theirs, middleware="rate_limit", limits="60 req/min", auth="off")

    assert answer.header(b"x-a") == b"1"
    assert [value for name, value in answer.headers if name.startswith(b"x-ratelimit-")] == [
        b"60",
        b"59",
        b"1s",
    ]


async def test_trailers_stay_behind_us() -> None:
    """What follows the last chunk may claim anything, and comes too late to be judged."""
    chunked = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
        b"trailer: x-late\r\n\r\n2\r\n{}\r\n0\r\nx-late: canary\r\nset-cookie: canary\r\n\r\n"
    )
    async with (
        scripted(answering(chunked)) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(headers=[(b"connection", b"close")]))
        everything = await client.rest()

    assert everything.endswith(b"2\r\n{}\r\n0\r\n\r\n")
    assert b"canary" not in everything
