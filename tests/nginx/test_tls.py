"""What can be had before the first request: versions, names, and nothing without TLS."""

import ssl
import warnings

import pytest

from tests.nginx.clients import CHAT, assert_refused, caller, plain_caller, raw
from tests.nginx.front import Certificates, Front
from tests.nginx.upstream import Upstream


def speaking(certificates: Certificates, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks this version only, and would accept the weakest cipher for it."""
    context = certificates.client_context(alpn=["h2", "http/1.1"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize(
    ("version", "name"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
async def test_current_tls_is_spoken(
    public: Front, certificates: Certificates, version: ssl.TLSVersion, name: str
) -> None:
    """TLS 1.2 and 1.3, and HTTP/2 over both."""
    async with raw(public, speaking(certificates, version)) as connection:
        tls = connection.writer.get_extra_info("ssl_object")

        assert tls.version() == name
        assert tls.selected_alpn_protocol() == "h2"


async def test_old_tls_is_refused(public: Front, certificates: Certificates) -> None:
    """TLS 1.1 gets an alert, even where the http context allows it, as Debian's does."""
    with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_PROTOCOL_VERSION"):
        async with raw(public, speaking(certificates, ssl.TLSVersion.TLSv1_1)):
            pass


async def test_a_cipher_without_forward_secrecy_is_refused(
    public: Front, certificates: Certificates
) -> None:
    """TLS 1.2 with the AES128-SHA of old is not spoken."""
    context = speaking(certificates, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA:AES128-SHA:@SECLEVEL=0")

    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        async with raw(public, context):
            pass


@pytest.mark.parametrize("name", ["other.example.com", None])
async def test_another_name_gets_no_handshake(
    public: Front, certificates: Certificates, name: str | None
) -> None:
    """Who scans addresses learns nothing, not even the name on the certificate."""
    context = certificates.client_context()
    context.check_hostname = False

    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        async with raw(public, context, name=name or ""):
            pass


async def test_another_host_header_is_misdirected(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """The name of the handshake does not open another host's door."""
    async with raw(public, trusting) as connection:
        await connection.send(b"GET /v1/models HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
        assert_refused(await connection.answer(), 421, "invalid_request")

    assert upstream.calls_seen == 0


async def test_plain_http_on_the_tls_port_is_refused(public: Front, upstream: Upstream) -> None:
    """In the usual shape, and without asking llmproxy."""
    async with raw(public, None, port=public.port) as connection:
        await connection.send(b"GET /v1/models HTTP/1.1\r\nHost: llm.example.com\r\n\r\n")
        assert_refused(await connection.answer(), 400, "invalid_request")

    assert upstream.calls_seen == 0


async def test_port_80_serves_nobody(public: Front, upstream: Upstream) -> None:
    """A key in the clear is an error that is seen, not a redirect that hides it."""
    async with plain_caller(public) as client:
        answer = await client.post(CHAT, json={})

    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "https_required"
    assert upstream.calls_seen == 0


async def test_port_80_answers_the_certificate_authority(public: Front) -> None:
    """ACME challenges are served as files."""
    challenges = public.root / "html" / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("proof")

    async with plain_caller(public) as client:
        answer = await client.get("/.well-known/acme-challenge/token")

    assert answer.text == "proof"


async def test_the_security_headers_are_there_once(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """On llmproxy's answers and on nginx' own, also when a model server sends its own set."""
    expected = {
        "strict-transport-security": "max-age=31536000",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    theirs = "".join(f"{name}: theirs\r\n" for name in expected)
    async with caller(public, trusting) as client, upstream.answering(theirs):
        passed = await client.get("/v1/models")
        refused = await client.get("/metrics")

    assert passed.status_code == 200
    assert_refused(refused, 404, "not_found")
    for answer in (passed, refused):
        assert {name: answer.headers.get(name) for name in expected} == expected
        assert answer.headers["server"] == "nginx"
