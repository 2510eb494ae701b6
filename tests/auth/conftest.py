"""Fixtures of the tests of keys."""

import pytest

from tests.auth.making import ShakyStore, Time


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Both clocks, to be put forward."""
    return Time(monkeypatch)


@pytest.fixture
def store() -> ShakyStore:
    """A store that counts and can be down."""
    return ShakyStore()
