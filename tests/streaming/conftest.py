"""Every test of this folder runs on uvicorn's own client connections, on ours, and routed."""

import pytest

from tests.support.rig import Connection, serve_with


@pytest.fixture(autouse=True, params=Connection, ids=lambda each: each.value)
def connection(request: pytest.FixtureRequest) -> Connection:
    """How the proxies of a test are served."""
    chosen: Connection = request.param
    serve_with(chosen)
    return chosen
