"""Transports of both kinds, closed at the end of the test."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx  # noqa: F401  # imported here, so that no coroutine has to wait for it
import pytest

from llmproxy.records import Upstream
from llmproxy.transport import Transport
from llmproxy.transport.connect import Kind, transport_for
from llmproxy.transport.limits import PoolLimits
from tests.support.upstream import ScriptedServer

Connect = Callable[..., Transport]


def only_http1(why: str) -> pytest.MarkDecorator:
    """Leave httpx out; the reason is for the reader."""
    assert why
    return pytest.mark.parametrize("kind", ["http1"])


@pytest.fixture(params=["http1", "httpx"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both implementations; a test that is for one of them says why."""
    chosen: Kind = request.param
    return chosen


@dataclass
class Resent:
    """How often the transports of a test sent a request again."""

    times: int = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def resent() -> Resent:
    """What the transports of the test count with."""
    return Resent()


@pytest.fixture
async def connect(kind: Kind, resent: Resent) -> AsyncIterator[Connect]:
    """Make transports: `connect(server)`, or with the fields of `PoolLimits` by name."""
    made: list[Transport] = []

    def make(to: ScriptedServer | Upstream, **limits: float) -> Transport:
        upstream = to if isinstance(to, Upstream) else to.upstream
        bounds = PoolLimits(**limits)  # type: ignore[arg-type]  # counts and seconds
        transport = transport_for(upstream, kind=kind, limits=bounds, resent=resent)
        made.append(transport)
        return transport

    yield make
    for transport in made:
        await transport.aclose()
