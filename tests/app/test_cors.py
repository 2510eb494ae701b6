"""What browsers are told that they may do."""

import pytest

from llmproxy.middleware.entrance import METHODS
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

ORIGIN = (b"origin", b"https://a.example")


@pytest.mark.parametrize("method", [*sorted(METHODS), "QUERY", "TRACE", "PROPFIND"])
async def test_a_browser_may_send_the_methods_that_are_served(method: str) -> None:
    """A preflight allows a method, and names it, exactly if the request itself is let in."""
    asks = (b"access-control-request-method", method.encode())
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, cors_origins="https://a.example") as proxy,
    ):
        preflight = await proxy.ask(
            request_bytes(b"/v1/models", method=b"OPTIONS", headers=[ORIGIN, asks], body=None)
        )
        itself = await proxy.ask(
            request_bytes(b"/v1/models", method=method.encode(), headers=[ORIGIN], body=None)
        )

    allowed = preflight.header(b"access-control-allow-methods")
    assert allowed is not None
    assert (preflight.status == 200) == (method in METHODS)
    assert (method.encode() in allowed.split(b", ")) == (method in METHODS)
    assert (itself.status in (400, 405, 501)) == (method not in METHODS)
