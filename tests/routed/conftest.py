"""Every test of this folder runs on uvicorn's own client connections and on ours."""

from collections.abc import Iterator

import pytest

from tests.support.rig import Connection, serve_with


@pytest.fixture(
    autouse=True, params=[Connection.UVICORN, Connection.OURS], ids=lambda each: each.value
)
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """How the proxies of a test are served."""
    chosen: Connection = request.param
    serve_with(chosen)
    yield chosen
    serve_with(Connection.UVICORN)
