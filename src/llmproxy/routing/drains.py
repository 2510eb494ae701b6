"""Which servers the operator has taken out of use: the same in every worker, and after a restart.

They are kept in the store, in one small document that each process looks at now and then. While
the store is away, what was last known goes on.
"""

import asyncio
import random

from llmproxy import codec
from llmproxy.routing.registry import MOST_SERVERS, Registry
from llmproxy.store.interface import Records, Unavailable

LOOK_EVERY = 3.0  # seconds, more or less
TRIES = 5  # when somebody else changes it at the same moment

_NAME = "drained"


class Drains:
    """What is kept, and the registry that is held to it."""

    def __init__(self, records: Records, registry: Registry) -> None:
        self._records = records
        self._registry = registry

    async def put(self, name: str, on: bool) -> None:
        """Drain a server, or use it again; raises `Unavailable` when that cannot be kept."""
        for _ in range(TRIES):
            kept = await self._records.get(_NAME)
            before = _names(kept)
            if before is None:
                before = self._registry.drained
            names = before | {name} if on else before - {name}
            if len(names) > MOST_SERVERS:
                raise Unavailable
            new = codec.dumps(sorted(names))
            if kept is None:
                done = await self._records.add(_NAME, new)
            else:
                done = kept == new or await self._records.replace(_NAME, kept, new)
            if done:
                self._registry.drain_only(names)
                return
        raise Unavailable

    async def look(self) -> None:
        """Take over what is kept."""
        try:
            names = _names(await self._records.get(_NAME))
        except Unavailable:
            return
        if names is not None:
            self._registry.drain_only(names)

    async def follow(self) -> None:
        """Look now and then what others have changed."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY * random.uniform(0.8, 1.2))


def _names(kept: bytes | None) -> frozenset[str] | None:
    """Return the names in a document; None when it is not one of ours."""
    if kept is None:
        return frozenset()
    try:
        names = codec.loads(kept)
    except codec.NotJson:
        return None
    return frozenset(names) if _are_names(names) else None


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
