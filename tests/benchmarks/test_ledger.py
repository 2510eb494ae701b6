"""The ledger of `python -m benchmarks.limits.ledger`, in small."""

import pytest

from benchmarks.limits.ledger import measure
from llmproxy.middleware.rate_limit import RateLimitMiddleware
from llmproxy.store.counters import Account


async def test_what_is_charged_is_what_is_owed(capsys: pytest.CaptureFixture[str]) -> None:
    """However requests end, and whenever clients leave."""
    assert await measure(1500, seed=2)
    assert "nothing came" in capsys.readouterr().out


async def test_a_wrong_charge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that is not given back, and a request that is not settled."""
    give_back = Account.give_back
    monkeypatch.setattr(Account, "give_back", lambda *_: None)
    assert not await measure(50, seed=2)
    monkeypatch.setattr(Account, "give_back", give_back)

    monkeypatch.setattr(RateLimitMiddleware, "_usage", lambda *_: None)
    assert not await measure(50, seed=2)
