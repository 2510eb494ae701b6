"""Every test of this folder runs on our own client connections."""

from collections.abc import Iterator

import pytest

from tests.support.rig import Connection, serve_with


@pytest.fixture(autouse=True)
def connection() -> Iterator[Connection]:
    """Whose client connections the proxies of a test are served with."""
    serve_with(Connection.OURS)
    yield Connection.OURS
    serve_with(Connection.UVICORN)
