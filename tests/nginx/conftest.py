"""A front per test, with a scripted upstream behind it."""

import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.nginx import front as fronts
from tests.nginx.front import NGINX, Certificates, Front
from tests.nginx.upstream import Upstream

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without nginx leave one test in place, to say so once and not for each of them."""
    if NGINX is None:
        ours = [item for item in items if item.path.is_relative_to(HERE)]
        config.hook.pytest_deselected(items=ours[1:])
        items[:] = [item for item in items if item not in ours[1:]]


@pytest.fixture(scope="session", autouse=True)
def real_nginx() -> None:
    """Skip where there is no nginx, out loud; in CI that is a failure."""
    if NGINX is not None:
        return
    reason = "nginx is not installed: the reference front in nginx/ was NOT tested"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    """The TLS context of a caller who knows the server's CA and speaks HTTP/1.1."""
    return certificates.client_context()


@pytest.fixture
async def root() -> AsyncIterator[Path]:
    async with fronts.directory() as path:
        yield path


@pytest.fixture
async def upstream(root: Path) -> AsyncIterator[Upstream]:
    """A scripted server on a unix socket, as the shipped files have it."""
    async with Upstream().listening(root / "llmproxy.sock") as listening:
        yield listening


@pytest.fixture
async def public(
    root: Path, upstream: Upstream, certificates: Certificates
) -> AsyncIterator[Front]:
    """llmproxy.conf, as shipped."""
    async with fronts.render_public(root, upstream.address, certificates).running() as front:
        yield front


@pytest.fixture
async def plain(root: Path, upstream: Upstream) -> AsyncIterator[Front]:
    """plain.conf, as shipped."""
    async with fronts.render_plain(root, upstream.address).running() as front:
        yield front
