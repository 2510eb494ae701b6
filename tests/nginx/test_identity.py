"""Who is calling is what nginx saw, never what the caller says."""

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1

from tests.nginx.clients import CHAT, assert_refused, caller, plain_caller
from tests.nginx.front import Certificates, Front, render_public
from tests.nginx.upstream import Call, Upstream

MTLS = (
    "ssl_client_certificate /etc/ssl/llmproxy/clients-ca.pem;",
    "ssl_verify_client on;",
    "ssl_verify_depth 2;",
)
REVOCATION = "ssl_crl /etc/ssl/llmproxy/clients-crl.pem;"
BEHIND_A_LOAD_BALANCER = (
    "set_real_ip_from 10.0.0.0/8;",
    "real_ip_header X-Forwarded-For;",
    "real_ip_recursive on;",
)
SPOOFED = {
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "gopher",
    "x-forwarded-host": "elsewhere.example",
    "x-forwarded-port": "1",
    "x-forwarded-prefix": "/admin",
    "x-real-ip": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
    "proxy": "http://elsewhere.example",
    "x-llmproxy-client-cert-verify": "SUCCESS",
    "x-llmproxy-client-cert-subject": "CN=somebody else",
    "x-llmproxy-client-cert-issuer": "CN=somebody else",
    "x-llmproxy-client-cert-fingerprint": "00",
    "x-forwarded-client-cert": "Subject=somebody",
    "client-cert": "::",
    "client-cert-chain": "::",
    "x_llmproxy_client_cert_verify": "SUCCESS",  # read with dashes by some servers
}


@asynccontextmanager
async def with_switched_on(
    root: Path,
    upstream: Upstream,
    certificates: Certificates,
    switch_on: Sequence[str],
    changes: dict[str, str] | None = None,
) -> AsyncIterator[Front]:
    rendered = render_public(
        root, upstream.address, certificates, switch_on=switch_on, changes=changes or {}
    )
    async with rendered.running() as front:
        yield front


async def seen_by_llmproxy(
    client: httpx.AsyncClient, upstream: Upstream, headers: dict[str, str]
) -> Call:
    async with upstream.answering():
        answer = await client.get("/v1/models", headers=headers)
    assert answer.status_code == 200
    return upstream.calls[-1]


async def first_log_line(front: Front, client: httpx.AsyncClient) -> str:
    """Return what nginx logged for the client's first request.

    It writes that after the answer, but before it reads the next request of the connection.
    """
    await client.get("/metrics")
    return (front.root / "llmproxy.log").read_text().splitlines()[0]


async def test_what_a_caller_says_about_itself_is_replaced(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """Address, scheme, host and certificate are nginx' own words, or absent."""
    async with caller(public, trusting) as client:
        call = await seen_by_llmproxy(client, upstream, SPOOFED)

    assert {name: call.header(name) for name in SPOOFED} == {
        **dict.fromkeys(SPOOFED),
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "llm.example.com",
        "x-forwarded-port": str(public.port),
        "x-llmproxy-client-cert-verify": "NONE",
    }
    assert call.header("host") == "llm.example.com"


async def test_the_plain_front_replaces_it_too(plain: Front, upstream: Upstream) -> None:
    """Without TLS there is no certificate to speak of at all."""
    async with plain_caller(plain) as client:
        call = await seen_by_llmproxy(client, upstream, SPOOFED)

    assert {name: call.header(name) for name in SPOOFED} == {
        **dict.fromkeys(SPOOFED),
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-host": "llm.example.com",
        "x-forwarded-port": str(plain.port),
    }


async def test_what_a_caller_says_about_its_key_arrives(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """Headers that are the caller's own pass unchanged."""
    own = {"authorization": "Bearer k", "x-llmproxy-timeout": "5", "x-session-id": "s"}
    async with caller(public, trusting) as client:
        call = await seen_by_llmproxy(client, upstream, own)

    assert {name: call.header(name) for name in own} == own


@pytest.mark.parametrize("given", ["a", "3f1c-9.b_Z", "x" * 64])
async def test_a_harmless_request_id_is_kept(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, given: str
) -> None:
    """A caller can find its own request in our logs."""
    async with caller(public, trusting) as client:
        call = await seen_by_llmproxy(client, upstream, {"x-request-id": given})
        logged = await first_log_line(public, client)

    assert call.header("x-request-id") == given
    assert json.loads(logged)["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", 'a"b'])
async def test_any_other_request_id_is_replaced(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, given: str | None
) -> None:
    """Every request has one id, and it is harmless in a log."""
    headers = {} if given is None else {"x-request-id": given}
    async with caller(public, trusting) as client:
        call = await seen_by_llmproxy(client, upstream, headers)

    request_id = call.header("x-request-id")
    assert request_id is not None and request_id != given
    assert len(request_id) == 32 and set(request_id) <= set("0123456789abcdef")


async def test_an_answer_carries_one_request_id(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """nginx adds the id only where llmproxy did not."""
    async with caller(public, trusting) as client:
        refused = await client.get("/metrics", headers={"x-request-id": "mine"})
        async with upstream.answering("x-request-id: of-llmproxy\r\n"):
            passed = await client.get("/v1/models", headers={"x-request-id": "mine"})

    assert refused.headers.get_list("x-request-id") == ["mine"]
    assert passed.headers.get_list("x-request-id") == ["of-llmproxy"]


async def test_the_log_holds_no_key(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """Neither the Authorization header nor a key in the query is written to the access log."""
    async with caller(public, trusting) as client, upstream.answering():
        await client.get("/v1/models?api_key=secret", headers={"authorization": "Bearer secret"})
        logged = await first_log_line(public, client)

    assert "secret" not in logged
    assert json.loads(logged)["path"] == "/v1/models"


async def test_a_load_balancer_in_front_is_believed_when_it_is_named(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """With the block switched on, the address is the last one that is not the balancer's."""
    named = {"    set_real_ip_from 10.0.0.0/8;": "    set_real_ip_from 127.0.0.0/8;"}
    async with (
        with_switched_on(root, upstream, certificates, BEHIND_A_LOAD_BALANCER, named) as front,
        caller(front, certificates.client_context()) as client,
    ):
        sent = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
        call = await seen_by_llmproxy(client, upstream, sent)

    assert call.header("x-forwarded-for") == "198.51.100.7"


async def test_a_stranger_is_not_believed_like_a_load_balancer(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """With the block as it stands, a caller from another network is who it is."""
    async with (
        with_switched_on(root, upstream, certificates, BEHIND_A_LOAD_BALANCER) as front,
        caller(front, certificates.client_context()) as client,
    ):
        call = await seen_by_llmproxy(client, upstream, {"x-forwarded-for": "203.0.113.9"})

    assert call.header("x-forwarded-for") == "127.0.0.1"


def subject_and_fingerprint(leaf: trustme.LeafCert) -> tuple[str, str]:
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    return certificate.subject.rfc4514_string(), certificate.fingerprint(SHA1()).hex()


async def test_a_verified_certificate_is_passed_on(
    root: Path, upstream: Upstream, certificates: Certificates
) -> None:
    """With mTLS on, llmproxy learns who it is, whatever the caller adds."""
    leaf = certificates.clients_ca.issue_cert("robot@example.com", common_name="robot")
    context = certificates.client_context(certificate=leaf)
    subject, fingerprint = subject_and_fingerprint(leaf)
    async with (
        with_switched_on(root, upstream, certificates, MTLS) as front,
        caller(front, context) as client,
    ):
        call = await seen_by_llmproxy(client, upstream, SPOOFED)

    assert "CN=robot" in subject
    assert call.header("x-llmproxy-client-cert-verify") == "SUCCESS"
    assert call.header("x-llmproxy-client-cert-subject") == subject
    assert call.header("x-llmproxy-client-cert-fingerprint") == fingerprint
    assert "trustme" in (call.header("x-llmproxy-client-cert-issuer") or "")
    assert call.header("x-forwarded-client-cert") is None


@pytest.mark.parametrize("path", [CHAT, "/health/ready", "/v1/files"])
@pytest.mark.parametrize("whose", ["nobody", "strange", "revoked"])
async def test_without_a_trusted_certificate_nothing_passes(
    root: Path, upstream: Upstream, certificates: Certificates, whose: str, path: str
) -> None:
    """With mTLS on, no certificate, a foreign one and a withdrawn one are refused everywhere."""
    withdrawn = certificates.clients_ca.issue_cert("old@example.com")
    leaf = {
        "nobody": None,
        "strange": certificates.strange_ca.issue_cert("robot@example.com"),
        "revoked": withdrawn,
    }[whose]
    (root / "clients-crl.pem").write_bytes(certificates.revocation_list(withdrawn))
    async with (
        with_switched_on(root, upstream, certificates, (*MTLS, REVOCATION)) as front,
        caller(front, certificates.client_context(certificate=leaf)) as client,
    ):
        answer = await client.post(path, json={}, headers=SPOOFED)

    assert_refused(answer, 403, "client_certificate_required")
    assert upstream.calls_seen == 0
