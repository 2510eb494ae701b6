"""What a routed request held is free at its end, and does not wait for the garbage collector.

Its attempts, its body and what is kept of a stream know of each other while it is on its way.
"""

import gc
from collections.abc import Callable, Iterator

import orjson
import pytest

from llmproxy.context import RequestContext
from llmproxy.journey import Journey
from llmproxy.routing.kept import KeptStream
from llmproxy.trial import Trial
from tests.support.calls import eventually
from tests.support.client import request_bytes
from tests.support.fleet import Answering, breaking, dropping, failing, fleet, speaking
from tests.support.upstream import Exchange

KINDS = (RequestContext, Journey, KeptStream, Trial)
BROKEN = b"500 Internal Server Error"


Kept = Callable[[], list[str]]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Tell what is left, without the collector; a test that has failed before keeps its own."""
    gc.collect()
    gc.disable()
    before = {id(each) for each in gc.get_objects() if isinstance(each, KINDS)}

    def since() -> list[str]:
        found = (each for each in gc.get_objects() if isinstance(each, KINDS))
        return [type(each).__name__ for each in found if id(each) not in before]

    yield since
    gc.enable()


@pytest.mark.parametrize(
    ("first", "stream"),
    [
        pytest.param(speaking("Hello"), False, id="answered"),
        pytest.param(speaking("Hello"), True, id="streamed"),
        pytest.param(failing(BROKEN), False, id="failed_over"),
        pytest.param(dropping, True, id="broken_before"),
        pytest.param(breaking("Hello there", Exchange.reset), True, id="rescued"),
    ],
)
async def test_nothing_is_left_of_a_request(first: Answering, stream: bool, kept: Kept) -> None:
    """Wherever it went."""
    async with fleet(first, speaking("Hello there")) as (proxy, _):
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
        await proxy.ask(request_bytes(b"/v1/chat/completions", body=orjson.dumps(body)))

        await eventually(lambda: not kept(), "everything was let go")


async def test_nothing_is_left_when_all_attempts_fail(kept: Kept) -> None:
    """Failures have frames, and these have everything."""
    async with fleet(dropping, failing(BROKEN)) as (proxy, _):
        await proxy.ask(request_bytes(b"/v1/chat/completions"))

        await eventually(lambda: not kept(), "everything was let go")
