"""The file of a SQLite store: how it is opened, what is in it, and what time it is there.

All processes of one host read the same clock, which no process can set: that of the kernel,
which counts from the start of the machine, moved so far that it shows the calendar's time as it
was when the file was first used after that start. Stepping the calendar moves nothing.
"""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from llmproxy import clock

VERSION = 1  # of the tables; another one is never touched
WAIT = 1.0  # seconds for another process that is writing
BETWEEN = 0.002  # seconds between two tries where SQLite leaves the waiting to us
LONGEST_LOG = 16 * 2**20  # bytes beside the file; SQLite itself begins anew at 4 MB, if it can
LOG_WAIT = 0.1  # seconds that all writers wait for somebody who reads, when it is written back
ANOTHER_START = 60.0  # seconds between two clocks, where the kernel does not name its starts

_TABLES = """
CREATE TABLE clock (boot TEXT NOT NULL, ahead REAL NOT NULL);
CREATE TABLE owners (owner TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE rates (
    name TEXT PRIMARY KEY, level REAL NOT NULL, at REAL NOT NULL, empty REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE budgets (
    name TEXT PRIMARY KEY, spent REAL NOT NULL, begins REAL NOT NULL, ends REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE held (
    kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, amount REAL NOT NULL,
    PRIMARY KEY (kind, name, owner)
) WITHOUT ROWID;
CREATE TABLE records (name BLOB PRIMARY KEY, value BLOB NOT NULL, until REAL) WITHOUT ROWID;
CREATE TABLE entries (place INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, entry BLOB);
CREATE INDEX rates_empty ON rates (empty);
CREATE INDEX budgets_ends ON budgets (ends);
CREATE INDEX held_owner ON held (owner);
CREATE INDEX records_until ON records (until) WHERE until IS NOT NULL;
CREATE INDEX entries_name ON entries (name, place);
"""


FileId = tuple[int, int]  # device and inode


class WrongVersion(Exception):
    """The file was made by another version of this program, or by another program."""


def file_id(path: Path) -> FileId | None:
    """Return which file is there now; None = none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_file(path: Path) -> tuple[sqlite3.Connection, float, FileId | None]:
    """Open it, make it if need be.

    Return it, how far its clock is ahead of the kernel's, and which file it is.
    """
    with suppress(FileExistsError):
        # Before SQLite does it: there are digests of keys in it, which are nobody else's concern.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    # Before it is opened: if it is replaced meanwhile, the difference will be seen.
    which = file_id(path)
    db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(db)
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose seconds; a kill cannot
        db.execute("BEGIN IMMEDIATE")
        _provide_tables(db)
        ahead = _clock(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db, ahead, which


def shorten_log(db: sqlite3.Connection, path: Path) -> None:
    """Write back what stands beside the file, and begin beside it anew, once that is long.

    SQLite does it by itself where there is a moment in which all is written back and nobody
    writes. Several processes with a slow disk leave none, and the log would grow without end.
    """
    if os.stat(f"{path}-wal").st_size <= LONGEST_LOG:
        return
    db.execute(f"PRAGMA busy_timeout = {LOG_WAIT * 1000:.0f}")
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        db.execute(f"PRAGMA busy_timeout = {WAIT * 1000:.0f}")


def _write_ahead(db: sqlite3.Connection) -> None:
    """Have changes written beside the file first, so that readers and a writer do not wait.

    For this one change SQLite does not wait for whoever is at the file: two that both want it
    would wait for each other, so one is told at once that the file is locked.
    """
    until = time.monotonic() + WAIT
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(BETWEEN)
        else:
            return


def _provide_tables(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and tables == 0:
        for statement in _TABLES.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
    elif version != VERSION:
        raise WrongVersion("the file is of another version or of another program")


def _clock(db: sqlite3.Connection) -> float:
    boot, now = _boot(), clock.wall() - time.monotonic()
    row = db.execute("SELECT boot, ahead FROM clock").fetchone()
    if row is not None and row[0] == boot and (boot or abs(row[1] - now) < ANOTHER_START):
        return float(row[1])
    # The machine was started since. Whoever held something is gone, and the next batch gives it
    # back; and should the calendar be behind what it was, nothing waits until it has caught up.
    db.execute("DELETE FROM clock")
    db.execute("INSERT INTO clock VALUES (?, ?)", (boot, now))
    db.execute("UPDATE owners SET expires = 0")
    at = now + time.monotonic()
    db.execute("UPDATE rates SET empty = ? + empty - at, at = ? WHERE at > ?", (at, at, at))
    return now


def _boot() -> str:
    """Return the name of this start of the machine; Linux has one, others may not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
