"""Who has changed what, when and from where.

The entry is written before the change, and where it cannot be written nothing is changed: so
there is no change without an entry. The other way round there may be an entry whose change was
refused or broke off; a second entry under the same id then says so. Undoing a change instead
would need the very store that has just failed, and a key that was shown cannot be taken back.

Each entry is in the store, and in the log of the process, where it outlives the store.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Literal, NamedTuple

from llmproxy import clock, codec
from llmproxy.admin.times import instant
from llmproxy.auth.issued import NameTaken, NoSuchKey
from llmproxy.cleanup import finish
from llmproxy.store.interface import Records, Unavailable

KEPT = 10_000  # entries
LONGEST = 500  # characters that an entry has of any one value: with KEPT it bounds the whole
LAST_WORDS = 1.0  # seconds

_NAME = "audit"

log = logging.getLogger("llmproxy.audit")


class Actor(NamedTuple):
    """Who makes a change. A name may pass from one to another, an id does not."""

    name: str
    id: str
    address: str | None  # from where, as far as that is known


class AuditLog:
    """The changes of one deployment, of late."""

    def __init__(self, records: Records) -> None:
        self._records = records

    @asynccontextmanager
    async def change(
        self,
        actor: Actor,
        action: str,
        name: str,
        changed: Mapping[str, str],
        *,
        what: Literal["key", "upstream"] = "key",
    ) -> AsyncIterator[None]:
        """Write an entry, let the change happen, and write another if it does not.

        `name` is that of `what` is changed. Raises `Unavailable` before anything is changed.
        """
        entry = {
            "id": token_hex(6),
            "time": instant(clock.wall()),
            "actor": actor.name[:LONGEST],
            "actor_id": actor.id[:LONGEST],
            "address": actor.address[:LONGEST] if actor.address is not None else None,
            "action": action,
            what: name,
            "changed": {name: _cut(value) for name, value in changed.items()},
        }
        await self._append(entry)
        _tell(entry)
        try:
            yield
        except (NameTaken, NoSuchKey):
            await self._follow_up(entry, "refused")
            raise
        except (Exception, asyncio.CancelledError):
            await self._follow_up(entry, "unfinished")
            raise

    async def entries(self, last: int) -> list[dict[str, Any]]:
        """Return the last entries, oldest first; what somebody else has put there is left out."""
        kept = await self._records.entries(_NAME, last=last)
        return [entry for entry in map(_read, kept) if entry is not None]

    async def _follow_up(self, entry: Mapping[str, object], result: str) -> None:
        entry = {**entry, "time": instant(clock.wall()), "changed": {}, "result": result}
        _tell(entry)  # first: the store may be what has just failed
        with suppress(Unavailable):
            await finish(self._append(entry), within=LAST_WORDS)

    async def _append(self, entry: Mapping[str, object]) -> None:
        await self._records.append(_NAME, codec.dumps(entry), keep=KEPT)


def _read(kept: bytes) -> dict[str, Any] | None:
    try:
        entry = codec.loads(kept)
    except codec.NotJson:
        return None
    return entry if isinstance(entry, dict) and "action" in entry else None


def _tell(entry: Mapping[str, object]) -> None:
    what = "key" if "key" in entry else "upstream"
    log.info(
        "%s %s of %s %s by %r from %s",
        entry["action"],
        entry.get("result", "begun"),
        what,
        entry[what],
        entry["actor"],
        entry["address"],
        extra={"audit": entry},
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
