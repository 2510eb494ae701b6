"""The store of one host: a SQLite file, which several processes may use at once.

Each batch is one transaction, in one thread that does nothing else. It takes the right to write
before it reads, so what was read is still true when it is written.
"""

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from llmproxy import clock
from llmproxy.store import sqlite_records as records
from llmproxy.store.dispatch import LEASE
from llmproxy.store.interface import Unavailable
from llmproxy.store.operations import Nothing, Operation, Read, Result, Settle, Take
from llmproxy.store.queued import QueuedStore
from llmproxy.store.sqlite_file import (
    WAIT,
    FileId,
    WrongVersion,
    file_id,
    open_file,
    shorten_log,
)
from llmproxy.store.sqlite_meters import Meters, forget, reap

FORGET_EVERY = 60.0  # seconds
LOOK_EVERY = 5.0  # seconds between two looks at how long the log is

log = logging.getLogger("llmproxy")


class SqliteStore(QueuedStore):
    """Meters and records in a file."""

    def __init__(self, path: Path, *, lease: float = LEASE, patience: float = WAIT + 0.5) -> None:
        super().__init__(_File(path, lease), patience=patience, lease=lease, events=Counter())


class _File:
    """What happens in the thread, and the way there."""

    def __init__(self, path: Path, lease: float) -> None:
        self._path = path
        self._lease = lease
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmproxy-sqlite")
        self._db: sqlite3.Connection | None = None
        self._which: FileId | None = None
        self._ahead = 0.0
        self._owner = ""
        self._forgot = 0.0
        self._looked = 0.0

    async def carry(self, batch: list[Operation[Any]], *, again: bool) -> list[Result]:
        if again:
            # What failed was rolled back, so this is not about what was done.
            batch = [each if isinstance(each, Settle) else Nothing() for each in batch]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._transact, batch
            )
        except (sqlite3.Error, OSError, WrongVersion) as exc:
            raise Unavailable(_reason(exc)) from exc

    async def aclose(self) -> None:
        with suppress(sqlite3.Error):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._leave)
        self._thread.shutdown(wait=False)

    def _transact(self, batch: list[Operation[Any]]) -> list[Result]:
        db = self._opened()
        try:
            db.execute("BEGIN IMMEDIATE")
            results = self._carry(db, batch)
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            with suppress(sqlite3.Error):
                db.close()
            self._db = None  # whatever it was: begin anew
            raise
        self._look_at_log(db)
        return results

    def _carry(self, db: sqlite3.Connection, batch: list[Operation[Any]]) -> list[Result]:
        now, wall = time.monotonic() + self._ahead, clock.wall()
        reap(db, now)
        self._stay(db, now)
        # While there is more, each batch goes on with it: a batch makes less than it forgets.
        if now - self._forgot > FORGET_EVERY and forget(db, now, wall):
            self._forgot = now
        meters = Meters(db)
        results: list[Result] = []
        for each in batch:
            if isinstance(each, Take):
                for meter, _ in each.wanted:
                    meters.load(meter)
                results.append(meters.counters.take(each.wanted, self._owner, now, wall))
            elif isinstance(each, Settle):
                for meter, _, _ in each.taken:
                    meters.load(meter)
                meters.counters.settle(each.taken, each.owner, now, wall)
                results.append(None)
            elif isinstance(each, Read):
                for meter in each.meters:
                    meters.load(meter)
                results.append(meters.counters.read(each.meters, now, wall))
            else:
                results.append(records.perform(db, each, now))
        meters.save()
        return results

    def _stay(self, db: sqlite3.Connection, now: float) -> None:
        """Renew the lease. Whoever was given up for dead comes back as somebody else."""
        renewed = db.execute(
            "UPDATE owners SET expires = ? WHERE owner = ?", (now + self._lease, self._owner)
        )
        if renewed.rowcount == 0:
            self._owner = token_hex(8)
            db.execute("INSERT INTO owners VALUES (?, ?)", (self._owner, now + self._lease))

    def _look_at_log(self, db: sqlite3.Connection) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            with suppress(sqlite3.Error, OSError):  # it can wait, and what was done is done
                shorten_log(db, self._path)

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and file_id(self._path) != self._which:
            # Removed, or replaced by another: whoever opens it from now on uses that one. To stay
            # with a file that nobody else finds would be to miss each key that is revoked.
            log.warning("the file of the store is not the one it was: it is opened anew")
            self._db.close()
            self._db = None
            self._owner = ""  # what we hold is in the other file
        if self._db is None:
            self._db, self._ahead, self._which = open_file(self._path)
        return self._db

    def _leave(self) -> None:
        if self._db is None:
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("UPDATE owners SET expires = 0 WHERE owner = ?", (self._owner,))
        reap(self._db, 0.0)
        self._db.execute("COMMIT")
        self._db.close()
        self._db = None


def _reason(error: Exception) -> str:
    """Say what is wrong with the file, without its name: SQLite's words have none."""
    return (error.strerror or "") if isinstance(error, OSError) else str(error)
