"""Records and lists in SQLite."""

import sqlite3
from typing import Any

from llmproxy.store.operations import (
    Append,
    Delete,
    Entries,
    Get,
    Names,
    Operation,
    Put,
    Replace,
    Result,
    spelt,
    written,
)

_LIVES = "(until IS NULL OR until > ?)"


def perform(db: sqlite3.Connection, asked: Operation[Any], now: float) -> Result:
    """Do what is asked, within the transaction that is open."""
    match asked:
        case Get(name):
            return _get(db, name, now)
        case Put(name, value, within, new):
            if new and _get(db, name, now) is not None:
                return False
            until = None if within is None else now + within
            db.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (written(name), value, until)
            )
            return True
        case Replace(name, old, value):
            changed = db.execute(
                f"UPDATE records SET value = ? WHERE name = ? AND value = ? AND {_LIVES}",
                (value, written(name), old, now),
            )
            return changed.rowcount > 0
        case Delete(name):
            there = _get(db, name, now) is not None
            db.execute("DELETE FROM records WHERE name = ?", (written(name),))
            return there
        case Names(prefix):
            return "", _names(db, written(prefix), now)
        case Append(name, entry, keep):
            db.execute("INSERT INTO entries (name, entry) VALUES (?, ?)", (written(name), entry))
            db.execute(
                "DELETE FROM entries WHERE name = ?1 AND place <="
                " (SELECT place FROM entries WHERE name = ?1 ORDER BY place DESC"
                " LIMIT 1 OFFSET ?2)",
                (written(name), keep),
            )
            return None
        case Entries(name, last):
            rows = db.execute(
                "SELECT entry FROM entries WHERE name = ? ORDER BY place DESC LIMIT ?",
                (written(name), last),
            ).fetchall()
            return [entry for (entry,) in reversed(rows)]
    return None


def _get(db: sqlite3.Connection, name: str, now: float) -> bytes | None:
    row = db.execute(
        f"SELECT value FROM records WHERE name = ? AND {_LIVES}", (written(name), now)
    ).fetchone()
    return bytes(row[0]) if row else None


def _names(db: sqlite3.Connection, prefix: bytes, now: float) -> list[str]:
    rows = db.execute(
        f"SELECT name FROM records WHERE name >= ? AND name < ? AND {_LIVES}",
        (prefix, prefix + b"\xff", now),  # a byte that no text has
    )
    return [spelt(name) for (name,) in rows]
