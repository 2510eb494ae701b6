"""Meters in SQLite: what a batch needs is read, counted by `Counters`, and written back."""

import sqlite3

from llmproxy.store.counters import Account, Rate
from llmproxy.store.interface import Kind, Meter
from llmproxy.store.notes import NotingCounters

FORGET = 1000  # rows of a table that are forgotten at a time: some milliseconds


class Meters:
    """The meters of one batch, within its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.counters = NotingCounters()
        self._db = db
        self._rates: dict[str, tuple[float, float]] = {}
        self._held: dict[tuple[str, str], dict[str, float]] = {}
        self._spent: dict[str, tuple[float, float]] = {}

    def load(self, meter: Meter) -> None:
        """Read what is known of a meter, once."""
        if meter.kind is Kind.RATE:
            if meter.name not in self._rates:
                self._load_rate(meter)
            if meter.provisional and (meter.kind.value, meter.name) not in self._held:
                self._load_notes(meter)
        elif (meter.kind.value, meter.name) not in self._held:
            self._load_account(meter)

    def save(self) -> None:
        """Write what has changed."""
        counters = self.counters
        self._db.executemany(
            "INSERT OR REPLACE INTO rates VALUES (?, ?, ?, ?)",
            [
                (name, rate.level, rate.at, rate.empty)
                for name, rate in counters.rates.items()
                if (rate.level, rate.at) != self._rates[name] and rate.level > 0.0
            ],
        )
        self._db.executemany(
            "DELETE FROM rates WHERE name = ?",
            [(name,) for name, rate in counters.rates.items() if rate.level <= 0.0],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO budgets VALUES (?, ?, ?, ?)",
            [
                (name, account.spent, account.begins, account.ends)
                for name, account in counters.budgets.items()
                if (account.spent, account.begins) != self._spent[name]
            ],
        )
        for kind, accounts in (
            (Kind.RATE, counters.notes),
            (Kind.HELD, counters.holds),
            (Kind.SPENT, counters.budgets),
        ):
            for name, account in accounts.items():
                self._save_held(kind.value, name, account)

    def _load_rate(self, meter: Meter) -> None:
        name = meter.name
        row = self._db.execute("SELECT level, at FROM rates WHERE name = ?", (name,)).fetchone()
        self._rates[name] = row or (0.0, 0.0)
        if row:
            self.counters.rates[name] = Rate(row[0], row[1], meter.each)

    def _load_account(self, meter: Meter) -> None:
        kind, name = meter.kind.value, meter.name
        account = None
        if meter.kind is Kind.SPENT:
            row = self._db.execute(
                "SELECT spent, begins, ends FROM budgets WHERE name = ?", (name,)
            ).fetchone()
            self._spent[name] = (row[0], row[1]) if row else (0.0, -1.0)
            if row:
                account = Account(row[1], row[2])
                account.spent = row[0]
        held = self._load_held(kind, name)
        if held and account is None:
            account = Account(0.0, 0.0)  # of a window that is over: the present one begins empty
            if meter.kind is Kind.HELD:
                account = Account()
        if account is not None:
            for owner, amount in held.items():
                account.hold(owner, amount)
            states = self.counters.budgets if kind == Kind.SPENT.value else self.counters.holds
            states[name] = account

    def _load_notes(self, meter: Meter) -> None:
        notes = Account()
        for owner, amount in self._load_held(meter.kind.value, meter.name).items():
            notes.hold(owner, amount)
        self.counters.notes[meter.name] = notes

    def _load_held(self, kind: str, name: str) -> dict[str, float]:
        held = self._held[kind, name] = dict(
            self._db.execute(
                "SELECT owner, amount FROM held WHERE kind = ? AND name = ?", (kind, name)
            ).fetchall()
        )
        return held

    def _save_held(self, kind: str, name: str, account: Account) -> None:
        before = self._held[kind, name]
        for owner in before.keys() | account.owners.keys():
            amount = account.owners.get(owner)
            if amount is None:
                self._db.execute(
                    "DELETE FROM held WHERE kind = ? AND name = ? AND owner = ?",
                    (kind, name, owner),
                )
            elif amount != before.get(owner):
                self._db.execute(
                    "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)", (kind, name, owner, amount)
                )


def reap(db: sqlite3.Connection, now: float) -> None:
    """Give back what those hold who have not been heard of."""
    for (owner,) in db.execute("SELECT owner FROM owners WHERE expires <= ?", (now,)).fetchall():
        # What is noted of a rate is in its level, too. `empty` stays as it was: to forget a rate
        # later than could be does no harm.
        noted = db.execute(
            "SELECT amount, name FROM held WHERE kind = ? AND owner = ?", (Kind.RATE.value, owner)
        ).fetchall()
        db.executemany("UPDATE rates SET level = max(0.0, level - ?) WHERE name = ?", noted)
        db.execute("DELETE FROM held WHERE owner = ?", (owner,))
        db.execute("DELETE FROM owners WHERE owner = ?", (owner,))


def forget(db: sqlite3.Connection, now: float, wall: float) -> bool:
    """Delete some of what is as good as new; tell whether that was all of it."""
    all_of_it = True
    for table, key, column, moment in (
        ("rates", "name", "empty", now),
        ("budgets", "name", "ends", wall),
        ("records", "name", "until", now),
    ):
        deleted = db.execute(
            f"DELETE FROM {table} WHERE {key} IN"
            f" (SELECT {key} FROM {table} WHERE {column} <= ? LIMIT {FORGET})",
            (moment,),
        )
        all_of_it = all_of_it and deleted.rowcount < FORGET
    return all_of_it
