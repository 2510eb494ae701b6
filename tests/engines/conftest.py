"""An engine, llmproxy in front of it, and clients for both.

Servers live as long as one test file: what a failed test leaves behind in an engine does not
reach the next file.
"""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.engines.asking import CLIENT_TIMEOUT, openai_client
from tests.engines.engine import Engine
from tests.engines.servers import Server, engine_server, proxy_server
from tests.engines.table import ENGINES


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine of the table."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture(scope="module")
def direct(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The engine itself."""
    with engine_server(engine, tmp_path_factory.mktemp(engine.name)) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(direct: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same engine through llmproxy."""
    with proxy_server(direct, folder=tmp_path_factory.mktemp("llmproxy")) as server:
        yield server


@pytest.fixture(params=["direct", "proxied"])
def server(request: pytest.FixtureRequest) -> Server:
    """Both ways to the engine: what holds on the one must hold on the other."""
    chosen: Server = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A plain HTTP client, for what the official one would not send or not show."""
    with httpx.Client(trust_env=False, timeout=CLIENT_TIMEOUT) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, one way or the other."""
    with openai_client(server) as opened:
        yield opened
