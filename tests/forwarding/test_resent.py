"""What is sent again when an engine closes a connection on which it is asked, and what is not."""

from functools import partial

import pytest

from llmproxy.transport import connect
from llmproxy.transport.limits import PoolLimits
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import Exchange, scripted

CHAT = b"/v1/chat/completions"
BATCHES = b"/v1/batches"
RESPONSES = b"/v1/responses"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends share a loop, and that a machine which may be busy."""
    monkeypatch.setattr(connect, "PoolLimits", partial(PoolLimits, race=5.0))


async def once(exchange: Exchange) -> None:
    """Answer the first request of each connection, and close at the second."""
    await exchange.request()
    if exchange.number == 1:
        exchange.json({"ok": True})
    else:
        exchange.reset()


@pytest.mark.parametrize(
    ("path", "body", "again"),
    [
        (CHAT, b'{"model":"m","messages":[]}', True),
        (RESPONSES, b'{"model":"m","input":"hi","store":false}', True),
        (RESPONSES, b'{"model":"m","input":"hi"}', False),
        (BATCHES, b'{"input_file_id":"f"}', False),
        (b"/v1/unheard/of", b"{}", False),
    ],
    ids=["chat", "unstored_response", "response", "batch", "unknown"],
)
async def test_what_must_not_be_done_twice_is_sent_once(
    path: bytes, body: bytes, again: bool
) -> None:
    """With no retries: what is sent again is counted, and is no other attempt."""
    async with scripted(once) as engine, proxied(engine.upstream, retries=0) as proxy:
        assert (await proxy.ask(request_bytes(path, body=body))).status == 200
        answer = await proxy.ask(request_bytes(path, body=body))
        resent = proxy.sample("upstream_attempts_total", upstream="engine", result="resent")
        line = await proxy.log.line(2)

    assert answer.status == (200 if again else 502)
    assert len(engine.requests) == (3 if again else 2)
    assert resent == int(again)
    assert line["attempts"] == 1


async def test_a_method_that_changes_nothing_is_sent_again() -> None:
    """Its name says so, whatever the path."""
    asking = request_bytes(b"/v1/files", method=b"GET", body=None)
    async with scripted(once) as engine, proxied(engine.upstream, retries=0) as proxy:
        statuses = [(await proxy.ask(asking)).status for _ in range(2)]

    assert statuses == [200, 200]
    assert len(engine.requests) == 3


async def test_deleting_is_not_sent_again() -> None:
    """A second time it would be told that there is no such thing."""
    asking = request_bytes(b"/v1/files/f", method=b"DELETE", body=None)
    async with scripted(once) as engine, proxied(engine.upstream, retries=0) as proxy:
        statuses = [(await proxy.ask(asking)).status for _ in range(2)]

    assert statuses == [200, 502]
    assert len(engine.requests) == 2
