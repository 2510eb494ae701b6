"""What holds for the file only."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from llmproxy import clock
from llmproxy.store import sqlite_file
from llmproxy.store.interface import Kind, Meter, Unavailable
from llmproxy.store.sqlite import SqliteStore
from tests.store.waiting import until_available

RATE = Meter("rate", Kind.RATE, 10, 3600)
TOKENS = Meter("tokens", Kind.RATE, 10, 3600, provisional=True)
SLOTS = Meter("slots", Kind.HELD, 10)


async def test_what_was_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    """Records too."""
    first = SqliteStore(tmp_path / "a")
    await first.take([(RATE, 4)])
    await first.put("name", b"value")
    await first.aclose()
    second = SqliteStore(tmp_path / "a")

    assert (await second.read([RATE]))[0].left == pytest.approx(6, abs=0.1)
    assert await second.get("name") == b"value"
    await second.aclose()


@pytest.mark.parametrize("step", [-600, 600])
async def test_a_calendar_that_is_set_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """Neither for who is running nor for who starts then."""
    first = SqliteStore(tmp_path / "a")
    await first.take([(RATE, 4), (SLOTS, 4)])
    monkeypatch.setattr(clock, "wall", lambda: time.time() + step)
    second = SqliteStore(tmp_path / "a")

    for store in (first, second):
        rate, slots = await store.read([RATE, SLOTS])
        assert rate.left == pytest.approx(6, abs=0.1)
        assert slots.left == 6
    await first.aclose()
    await second.aclose()


@pytest.mark.parametrize("behind", [0.0, 7200.0])
async def test_a_new_start_of_the_machine_ends_every_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float
) -> None:
    """Rates go on by the calendar, even by one that is behind what it was."""
    first = SqliteStore(tmp_path / "a")
    await first.take([(RATE, 4), (TOKENS, 4), (SLOTS, 4)])
    monkeypatch.setattr(sqlite_file, "_boot", lambda: "another")
    monkeypatch.setattr(clock, "wall", lambda: time.time() - behind)
    second = SqliteStore(tmp_path / "a")

    rate, tokens, slots = await second.read([RATE, TOKENS, SLOTS])

    assert rate.left == pytest.approx(6, abs=0.1)
    assert (tokens.left, slots.left) == (10, 10)
    refused = await second.take([(RATE, 7)])
    assert refused.readings[0].retry_in == pytest.approx(360, abs=5)
    await first.aclose()
    await second.aclose()


async def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """It cannot be asked, and is not overwritten."""
    path, content = tmp_path / "a", b"this is no database, and long enough to be one" * 40
    path.write_bytes(content)
    store = SqliteStore(path)

    with pytest.raises(Unavailable):
        await store.take([(RATE, 1)])

    await store.aclose()
    assert path.read_bytes() == content


async def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """What a later version has written is not for us to change."""
    db = sqlite3.connect(tmp_path / "a")
    db.execute("PRAGMA user_version = 2")
    db.execute("CREATE TABLE something (x)")
    db.close()
    store = SqliteStore(tmp_path / "a")

    with pytest.raises(Unavailable):
        await store.get("name")

    await store.aclose()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nowhere", "No such file or directory"),
        ("a directory", "unable to open database file"),
        ("something else", "file is not a database"),
        ("another version", "the file is of another version or of another program"),
        ("somebody writes", "database is locked"),
    ],
)
async def test_the_log_says_what_is_wrong_with_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, words: str
) -> None:
    """Each of these is mended in its own way. The path is not told."""
    path = tmp_path / ("no" if fault == "nowhere" else "") / "secret"
    db = sqlite3.connect(":memory:" if fault != "somebody writes" else path, isolation_level=None)
    if fault == "a directory":
        path.mkdir()
    elif fault == "something else":
        path.write_bytes(b"this is no database" * 99)
    elif fault == "another version":
        db.execute("PRAGMA user_version = 2")
        db.execute("VACUUM INTO ?", (str(path),))
    elif fault == "somebody writes":
        db.execute("BEGIN IMMEDIATE")
    store = SqliteStore(path)

    with pytest.raises(Unavailable):
        await store.get("name")

    assert f"the store cannot be asked: {words}" in caplog.messages
    assert "secret" not in caplog.text
    await store.aclose()
    db.close()


def test_those_who_make_it_at_the_same_moment_all_get_it(tmp_path: Path) -> None:
    """As the workers of one start do; one in seven such starts failed when nobody waited."""
    together = Barrier(4)

    def open_with_others(path: Path) -> None:
        together.wait(10)
        sqlite_file.open_file(path)[0].close()

    with ThreadPoolExecutor(4) as workers:
        for number in range(60):
            list(workers.map(open_with_others, [tmp_path / str(number)] * 4))


def backup(path: Path, to: Path) -> None:
    """Copy a file that is in use."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_removed_is_not_used_any_more(tmp_path: Path, replaced: bool) -> None:
    """All go on with the file that is there: a key that is revoked there is revoked."""
    store = SqliteStore(tmp_path / "a")
    before = await store.take([(SLOTS, 4)])
    await store.put("name", b"before")
    backup(tmp_path / "a", tmp_path / "backup")
    await store.put("name", b"after")
    for name in ("a", "a-wal", "a-shm"):
        (tmp_path / name).unlink()
    if replaced:
        (tmp_path / "backup").rename(tmp_path / "a")
    other = SqliteStore(tmp_path / "a")

    assert await other.get("name") == (b"before" if replaced else None)
    await other.put("name", b"of the new file")
    assert await store.get("name") == b"of the new file"
    after = await store.take([(SLOTS, 3)])
    await store.settle([(SLOTS, 4, 0)], before.owner)

    assert after.owner != before.owner
    assert (await store.read([SLOTS]))[0].left == 7
    await store.aclose()
    await other.aclose()


async def test_somebody_who_writes_for_long_is_an_outage(tmp_path: Path) -> None:
    """It ends when he ends, and what was to be settled meanwhile is settled."""
    store = SqliteStore(tmp_path / "a")
    grant = await store.take([(SLOTS, 4)])
    other = sqlite3.connect(tmp_path / "a", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await store.settle([(SLOTS, 1, 0)], grant.owner)

    with pytest.raises(Unavailable):
        await store.take([(SLOTS, 4)])
    with pytest.raises(Unavailable):
        await store.take([(SLOTS, 4)])
    other.execute("ROLLBACK")
    other.close()
    await until_available(store)

    assert (await store.read([SLOTS]))[0].left == 7
    await store.aclose()


async def test_the_log_beside_the_file_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where SQLite never finds the moment to begin it anew; nobody waits for a reader."""
    monkeypatch.setattr("llmproxy.store.sqlite.LOOK_EVERY", 0.0)
    monkeypatch.setattr(sqlite_file, "LONGEST_LOG", 200_000)
    log = tmp_path / "a-wal"
    store = SqliteStore(tmp_path / "a")
    await store.read([])
    reader = sqlite3.connect(tmp_path / "a", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM records").fetchall()

    for _ in range(3):
        await store.put("name", bytes(100_000))
    with_a_reader = log.stat().st_size
    reader.close()
    await store.put("name", bytes(10))

    assert with_a_reader > 300_000
    assert log.stat().st_size == 0
    assert store.events["unavailable"] == 0
    assert await store.get("name") == bytes(10)
    await store.aclose()


async def test_what_has_ended_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not grow with everybody who was ever seen."""
    monkeypatch.setattr("llmproxy.store.sqlite.FORGET_EVERY", 0.0)
    store = SqliteStore(tmp_path / "a")
    for number in range(50):
        await store.take([(Meter(f"rate:{number}", Kind.RATE, 1e9, 1), 1)])
        await store.put(f"nonce:{number}", b"", within=0.0)
    await store.read([])
    await store.aclose()
    db = sqlite3.connect(tmp_path / "a")

    for table in ("rates", "records", "held", "owners"):
        (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert rows <= 1, table
    db.close()


async def test_more_ends_than_is_deleted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch goes on with it: what comes between two looks is not left to pile up."""
    monkeypatch.setattr("llmproxy.store.sqlite_meters.FORGET", 10)
    before = SqliteStore(tmp_path / "a")
    for number in range(50):
        await before.put(f"nonce:{number}", b"", within=0.0)
    await before.aclose()

    store = SqliteStore(tmp_path / "a")
    for _ in range(6):
        await store.read([])
    await store.aclose()

    db = sqlite3.connect(tmp_path / "a")
    assert db.execute("SELECT count(*) FROM records").fetchone() == (0,)
    db.close()


async def test_who_was_given_up_comes_back_as_somebody_else(tmp_path: Path) -> None:
    """What it gives back of its former life is not taken from its present one."""
    store, other = SqliteStore(tmp_path / "a"), SqliteStore(tmp_path / "a")
    before = await store.take([(SLOTS, 4), (TOKENS, 4)])
    db = sqlite3.connect(tmp_path / "a", isolation_level=None)
    db.execute("UPDATE owners SET expires = 0")
    db.close()
    assert [each.left for each in await other.read([SLOTS, TOKENS])] == [10, 10]

    after = await store.take([(SLOTS, 2), (TOKENS, 2)])
    await store.settle([(SLOTS, 4, 0), (TOKENS, 4, 1)], before.owner)

    assert after.owner != before.owner
    slots, tokens = await store.read([SLOTS, TOKENS])
    assert slots.left == 8
    assert tokens.left == pytest.approx(7, abs=0.1)
    await store.aclose()
    await other.aclose()
