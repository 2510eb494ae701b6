"""Which paths reach llmproxy: everything that is for callers, nothing that is for operators."""

import ssl

import pytest

from tests.nginx.clients import assert_refused, caller, plain_caller, raw
from tests.nginx.front import Front
from tests.nginx.upstream import Upstream

CLOSED = [
    "/metrics",
    "/metrics/",
    "/metrics?x=1",
    "//metrics",
    "/%6detrics",
    "/v1/../metrics",
    "/v1/..%2fmetrics",
    "/./metrics",
    "/health",
    "/health/",
    "/health/upstreams",
    "/health/live/../upstreams",
    "/admin",
    "/admin/keys",
    "/v1/%2e%2e/admin/keys",
]


@pytest.mark.parametrize("path", CLOSED)
async def test_the_operators_paths_are_closed(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, path: str
) -> None:
    """However they are spelt, they do not exist outside."""
    async with raw(public, trusting) as connection:
        await connection.get(path)
        assert_refused(await connection.answer(), 404, "not_found")

    assert upstream.calls_seen == 0


@pytest.mark.parametrize("path", ["/metrics", "/health", "/health/upstreams", "/admin/keys"])
async def test_the_plain_front_closes_them_too(plain: Front, upstream: Upstream, path: str) -> None:
    """A network that is trusted with keys is not yet one that may manage them."""
    async with plain_caller(plain) as client:
        assert_refused(await client.get(path), 404, "not_found")

    assert upstream.calls_seen == 0


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_a_load_balancer_may_ask(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, path: str
) -> None:
    """llmproxy's own answer to a probe comes through, refusals included."""
    async with caller(public, trusting) as client, upstream.answering(status="503 Draining"):
        answer = await client.get(path)

    assert answer.status_code == 503
    assert answer.json() == {"ok": True}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/models/meta-llama%2FLlama-3.3-70B",
        "/v1/models?a=%20&b=%2F",
        "/api/tags",
        "/v1//x/../models",
        "/",
    ],
)
async def test_every_other_path_arrives_as_it_was_sent(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext, path: str
) -> None:
    """nginx rewrites nothing: llmproxy judges the very bytes."""
    async with raw(public, trusting) as connection:
        await connection.get(path)
        call = await upstream.next_call()
        await call.answer()

        assert (await connection.answer()).status == 200
    assert call.target == path


async def test_the_error_page_is_no_page(
    public: Front, upstream: Upstream, trusting: ssl.SSLContext
) -> None:
    """The path that nginx uses for its own errors cannot be asked for."""
    async with caller(public, trusting) as client:
        assert_refused(await client.get("/.llmproxy-error"), 404, "not_found")

    assert upstream.calls_seen == 0
