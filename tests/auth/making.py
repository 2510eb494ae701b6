"""What the tests of keys are made of: a grammar, a store that can fail, a clock to put forward."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from llmproxy import clock
from llmproxy.auth.authenticator import Call
from llmproxy.auth.fields import Fields
from llmproxy.auth.keys import KeyEntry, keys
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limits import limits
from llmproxy.store.interface import Unavailable
from llmproxy.store.memory import MemoryStore
from llmproxy.types import Header

FIELDS = Fields(limits=limits, budgets=budgets)
ALICE = "sk-alice-8f3KpQz71LmX"


def entries(given: object, **environ: str) -> tuple[KeyEntry, ...]:
    """Read keys as the configuration would."""
    return keys(given, fields=FIELDS, environ=environ)


class ShakyStore(MemoryStore):
    """A store that counts what it is asked, takes a moment to answer, and can be down."""

    def __init__(self) -> None:
        super().__init__(steady=lambda: clock.now(), wall=lambda: clock.wall())
        self.down = False
        self.asked: Counter[str] = Counter()

    async def get(self, name: str) -> bytes | None:
        self.asked[name.rpartition(":")[0]] += 1
        await asyncio.sleep(0)
        self._answer()
        return await super().get(name)

    async def add(self, name: str, value: bytes, *, within: float | None = None) -> bool:
        await asyncio.sleep(0)
        self._answer()
        return await super().add(name, value, within=within)

    def _answer(self) -> None:
        if self.down:
            raise Unavailable

    @property
    def lookups(self) -> int:
        """How often it was asked for a key by its digest."""
        return self.asked["keys:digest"]


class Time:
    """Both clocks, as far ahead as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(clock, "now", lambda: time.monotonic() + self.ahead)
        monkeypatch.setattr(clock, "wall", lambda: time.time() + self.ahead)

    def passes(self, seconds: float) -> None:
        """Put both forward."""
        self.ahead += seconds


def call(*headers: Header, **changed: Any) -> Call:
    """Return a request that carries these headers."""
    values: dict[str, Any] = {
        "headers": list(headers),
        "fields": dict(headers),
        "method": "POST",
        "target": b"/v1/chat/completions",
        "peer": "192.0.2.7",
        "client": "192.0.2.7",
        **changed,
    }
    return Call(**values)


def bearer(secret: str | bytes) -> Header:
    """Return the usual header."""
    return b"authorization", b"Bearer " + (secret.encode() if isinstance(secret, str) else secret)


@dataclass
class Seen:
    """Text in which no secret may be."""

    text: str

    def has_none_of(self, *secrets: str | bytes) -> None:
        """Object to a secret in any spelling."""
        for secret in secrets:
            plain = secret.decode("latin-1") if isinstance(secret, bytes) else secret
            raw = secret.encode() if isinstance(secret, str) else secret
            assert plain not in self.text
            assert raw.hex() not in self.text
            assert repr(raw)[2:-1] not in self.text
