"""What of a caller's head an engine gets, and what is said anew."""

import re
from dataclasses import replace

import pytest

from llmproxy.records import Upstream
from llmproxy.types import Header
from tests.support.client import Answer, request_bytes
from tests.support.rig import proxied
from tests.support.upstream import Request, json_answer, scripted

ECHO = json_answer({"ok": True})


async def sent_upstream(
    headers: list[Header], *, credentials: tuple[Header, ...] = (), **settings: object
) -> Request:
    """Return what the engine is asked when a caller sends these headers."""
    return (await exchange(headers, credentials=credentials, **settings))[0]


async def exchange(
    headers: list[Header], *, credentials: tuple[Header, ...] = (), **settings: object
) -> tuple[Request, Answer]:
    """Return what the engine is asked and what the caller is answered."""
    async with scripted(ECHO) as engine:
        host, port = engine.address
        upstream = Upstream("engine", "http", host, port, credentials=credentials)
        async with proxied(upstream, **settings) as proxy:
            answer = await proxy.ask(request_bytes(headers=headers))
    assert answer.status == 200, answer.body
    return engine.requests[0], answer


def values(request: Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers if key == name]


@pytest.mark.parametrize(
    "name",
    [
        *(b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"upgrade", b"connection"),
    ],
    ids=bytes.decode,
)
async def test_hop_by_hop_headers_stay_with_us(name: bytes) -> None:
    """What is meant for the next hop ends at the next hop."""
    request = await sent_upstream([(name, b"canary")])

    assert values(request, name) == []


async def test_a_header_named_by_connection_stays_with_us() -> None:
    """A caller may declare further headers hop-by-hop, in any case and in several lines."""
    request = await sent_upstream(
        [
            (b"Connection", b"X-Tenant , close"),
            (b"connection", b"x-other"),
            (b"x-tenant", b"a"),
            (b"x-other", b"b"),
            (b"x-kept", b"c"),
        ]
    )

    assert values(request, b"x-tenant") == values(request, b"x-other") == []
    assert request.header(b"x-kept") == b"c"


async def test_connection_cannot_take_away_what_we_say() -> None:
    """Our own headers, the framing and the type of the body survive being named."""
    named = b"host, content-length, content-type, authorization, accept-encoding, via, x-request-id"

    request = await sent_upstream(
        [(b"connection", named)], credentials=((b"authorization", b"Bearer up"),)
    )

    for name in named.split(b", "):
        assert request.header(name) is not None, name


async def test_what_a_request_was_signed_with_stays_with_us() -> None:
    """The engine gets another head, and often another body than was signed."""
    request = await sent_upstream([(b"x-content-sha256", b"0" * 64)])

    assert values(request, b"x-content-sha256") == []


@pytest.mark.parametrize("name", [b"x_tenant", b"content_length", b"X_Request-Id"])
async def test_names_with_an_underscore_are_dropped(name: bytes) -> None:
    """Some servers read X_Tenant as X-Tenant: nobody may be impersonated by spelling."""
    request = await sent_upstream([(name, b"5")])

    assert values(request, name.lower()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer canary"),
        (b"x-api-key", b"canary"),
        (b"api-key", b"canary"),
        (b"cookie", b"session=canary"),
        (b"proxy-authorization", b"Basic canary"),
        (b"x-goog-api-key", b"canary"),
        (b"x-goog-user-project", b"canary"),
    ],
    ids=lambda each: each.decode().split(" ")[0],
)
async def test_the_callers_credentials_are_never_sent_on(name: bytes, value: bytes) -> None:
    """A key that opens this proxy is none of an engine's business."""
    request = await sent_upstream([(name, value)])

    assert b"canary" not in request.raw


async def test_the_engine_gets_the_configured_credential_alone() -> None:
    """Whatever the caller sends under the same name is replaced, not joined."""
    request = await sent_upstream(
        [(b"authorization", b"Bearer canary")], credentials=((b"authorization", b"Bearer up"),)
    )

    assert values(request, b"authorization") == [b"Bearer up"]


async def test_the_key_of_an_upstream_is_sent_as_a_bearer_token() -> None:
    """`key=` in the configuration is all that is needed."""
    async with scripted(ECHO) as engine, proxied(f"{engine.url};key=sk-9Qm4vT7xKp2w") as proxy:
        await proxy.ask(request_bytes())

    assert values(engine.requests[0], b"authorization") == [b"Bearer sk-9Qm4vT7xKp2w"]


async def test_no_compressed_answer_is_asked_for() -> None:
    """An engine that compresses a stream holds it back, whatever the caller could read."""
    request = await sent_upstream([(b"accept-encoding", b"gzip, br")])

    assert values(request, b"accept-encoding") == [b"identity"]


async def test_host_names_the_engine() -> None:
    """Behind one address may stand many names; the caller's is not one of them."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        await proxy.ask(request_bytes(headers=[(b"host", b"evil.test")]))

    assert values(engine.requests[0], b"host") == [b"127.0.0.1:%d" % engine.address[1]]


async def test_where_a_request_comes_from_is_said_in_every_spelling() -> None:
    """An engine behind us can log the caller's address and name."""
    request = await sent_upstream([(b"host", b"api.test")])

    assert request.header(b"x-forwarded-for") == b"127.0.0.1"
    assert request.header(b"x-forwarded-proto") == b"http"
    assert request.header(b"x-forwarded-host") == b"api.test"
    assert request.header(b"forwarded") == b'for=127.0.0.1;host="api.test";proto=http'


CLAIMED = [
    (b"x-forwarded-for", b"203.0.113.5"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"public.test"),
    (b"forwarded", b"for=203.0.113.5;proto=https"),
    (b"x-real-ip", b"203.0.113.5"),
    (b"x-forwarded-port", b"443"),
]


async def test_a_stranger_is_not_believed_about_where_it_comes_from() -> None:
    """Whoever is no trusted proxy speaks for itself alone."""
    request = await sent_upstream(CLAIMED)

    assert request.header(b"x-forwarded-for") == b"127.0.0.1"
    assert b"203.0.113.5" not in request.raw
    assert b"public.test" not in request.raw
    assert request.header(b"x-forwarded-port") is None


@pytest.mark.parametrize(
    "name",
    [b"x-forwarded-prefix", b"x-forwarded-user", b"X-Forwarded-Ssl", b"x-forwarded-anything"],
)
async def test_a_stranger_may_not_add_to_what_is_said_of_it(name: bytes) -> None:
    """Some engines build their links by the one, or know their user by the other."""
    request = await sent_upstream([(name, b"canary")])

    assert values(request, name.lower()) == []


async def test_a_trusted_proxy_is_believed_and_added_to() -> None:
    """The chain grows by the proxy itself; name and scheme are those the caller used."""
    request = await sent_upstream(CLAIMED, trusted_proxies="127.0.0.0/8")

    assert request.header(b"x-forwarded-for") == b"203.0.113.5, 127.0.0.1"
    assert request.header(b"x-forwarded-proto") == b"https"
    assert request.header(b"x-forwarded-host") == b"public.test"
    forwarded = request.header(b"forwarded")
    assert forwarded is not None and forwarded.startswith(b"for=203.0.113.5;proto=https, for=127.")


async def test_the_log_shows_the_caller_behind_trusted_proxies() -> None:
    """The first address that is not trusted, read from the near end, is the caller's."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, trusted_proxies="127.0.0.1,10.0.0.0/8") as proxy,
    ):
        chain = b"198.51.100.66, 203.0.113.5, 10.1.2.3"
        await proxy.ask(request_bytes(headers=[(b"x-forwarded-for", chain)]))
        line = await proxy.log.line()

    assert line["client"] == "203.0.113.5"


async def test_via_names_us_behind_those_who_came_before() -> None:
    """The way that a request has taken can be read, and a loop be seen."""
    request = await sent_upstream([(b"via", b"1.0 outer")])

    via = request.header(b"via")
    assert via is not None
    assert re.fullmatch(rb"1\.0 outer, 1\.1 llmproxy-[0-9a-f]{12}", via)


async def test_our_own_headers_are_not_taken_from_outside() -> None:
    """x-llmproxy-* is what this proxy says, to callers and to engines."""
    request = await sent_upstream(
        [(b"x-llmproxy-priority", b"5"), (b"x-llmproxy-upstream", b"canary")]
    )

    assert b"x-llmproxy" not in request.raw


async def test_the_engine_is_told_what_is_left_of_a_callers_time() -> None:
    """So that another proxy behind us does not begin what nobody waits for any more."""
    request = await sent_upstream([(b"x-llmproxy-timeout", b"7")], timeout_total=5)

    (left,) = values(request, b"x-llmproxy-timeout")
    assert re.fullmatch(rb"4\.[0-9]{3}", left)


async def test_without_a_time_of_the_callers_none_is_told() -> None:
    """How long we would wait ourselves is nobody else's business."""
    request = await sent_upstream([], timeout_total=5)

    assert values(request, b"x-llmproxy-timeout") == []


async def test_the_engine_gets_an_id_of_ours() -> None:
    """A caller cannot name another's request at the engine: the id there is ours and random."""
    request, answer = await exchange([(b"x-request-id", b"mine-1")])

    engine_id = request.header(b"x-request-id")
    assert engine_id is not None and re.fullmatch(rb"[0-9a-f]{32}", engine_id)
    assert answer.header(b"x-request-id") == b"mine-1"


@pytest.mark.parametrize(
    "theirs",
    [b"", b"a" * 65, b"a b", b"a/b", "é".encode(), b"a;b", b"<script>"],
    ids=["empty", "too_long", "space", "slash", "not_ascii", "semicolon", "markup"],
)
async def test_an_id_that_could_do_harm_is_replaced(theirs: bytes) -> None:
    """What comes back and goes into logs is [A-Za-z0-9._-]{1,64} or our own."""
    request, answer = await exchange([(b"x-request-id", theirs)])

    assert answer.header(b"x-request-id") == request.header(b"x-request-id")


@pytest.mark.parametrize("theirs", [b"a", b"A-1._", b"a" * 64])
async def test_an_id_that_is_harmless_comes_back(theirs: bytes) -> None:
    """The caller finds its own request in our log."""
    _, answer = await exchange([(b"x-request-id", theirs)])

    assert answer.header(b"x-request-id") == theirs


async def test_other_headers_go_on_as_they_came() -> None:
    """Repeated ones stay apart and in their order."""
    theirs = [
        (b"x-custom", b"1"),
        (b"openai-organization", b"org"),
        (b"x-custom", b"2"),
        (b"anthropic-beta", b"tools"),
        (b"accept", b"text/event-stream"),
    ]

    request = await sent_upstream(theirs)

    assert [header for header in request.headers if header in theirs] == theirs


async def test_an_expectation_is_met_by_us() -> None:
    """The caller gets its 100 once we want the body; the engine is not asked for another."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        head, _, body = request_bytes(headers=[(b"expect", b"100-continue")]).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.send(body)
        answer = await client.answer()

    assert answer.status == 200
    assert engine.requests[0].header(b"expect") is None


async def test_a_server_that_got_another_key_is_never_sent_the_old_one() -> None:
    """Also on a connection whose head has been the same all along, and was noted with the key."""
    async with scripted(json_answer({})) as engine:
        old = replace(engine.upstream, credentials=((b"authorization", b"Bearer old"),))
        new = replace(engine.upstream, credentials=((b"authorization", b"Bearer new"),))
        async with proxied(old) as proxy, proxy.client() as client:
            running = proxy.app._running
            for upstream in (old, new):
                if running is not None:
                    running.engines.registry.replace("configured", [upstream])
                for _ in range(4):
                    client.send(request_bytes())
                    assert (await client.answer()).status == 200
                running = proxy.app._running

    keys = [request.header(b"authorization") for request in engine.requests]
    assert keys == [b"Bearer old"] * 4 + [b"Bearer new"] * 4
