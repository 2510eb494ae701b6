"""From a URL to a store. What a store needs is imported only when there is such a store."""

import importlib
from pathlib import Path

from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from llmproxy.store.urls import place, store_url

__all__ = ["open_store", "store_url"]


def open_store(url: str, *, patience: float | None = None) -> Store:
    """Return the store that a URL names; connections are made when they are needed.

    `patience` is for whoever would rather wait for it than do without, in seconds.
    """
    where = place(url)
    if where.kind == "memory":
        return MemoryStore()
    if where.kind == "sqlite":
        from llmproxy.store.sqlite import SqliteStore

        path = Path(where.path)
        return SqliteStore(path) if patience is None else SqliteStore(path, patience=patience)
    from llmproxy.store.redis import RedisStore

    return RedisStore(where) if patience is None else RedisStore(where, patience=patience)


def prepare(url: str) -> None:
    """Load what the store needs: a tenth of a second that no event loop has to wait."""
    if place(url).kind not in ("memory", "sqlite"):
        importlib.import_module("llmproxy.store.redis")
