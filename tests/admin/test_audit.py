"""Who has changed what, when and from where."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from llmproxy.admin import audit
from llmproxy.admin.times import instant, length
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Principal, Role
from tests.admin.office import ADMIN_KEY, KEY, FailingStore, Office, known, office


async def entries(desk: Office, query: str = "") -> list[dict[str, Any]]:
    answer = await desk.ask("GET", f"/admin/audit{query}", headers=KEY)
    assert answer.status == 200
    found: list[dict[str, Any]] = answer.document["data"]
    return found


async def test_every_change_has_one_entry() -> None:
    """Who, what, when, from where, and what was said of the key."""
    desk = office()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    given = {"name": "blue", "limits": "5 req/min", "tags": ["a", "b"], "note": "shop"}
    await desk.ask("POST", "/admin/keys", given)
    await desk.ask("POST", "/admin/keys/blue/rotate", {"overlap": "2h"})
    await desk.ask("DELETE", "/admin/keys/blue")

    found = await entries(desk)

    assert [(each["action"], each["changed"]) for each in found] == [
        ("create", {"limits": "5 req/min per key", "tags": "a|b", "note": "shop"}),
        ("rotate", {"overlap": "7200 s"}),
        ("revoke", {}),
    ]
    assert {(each["actor"], each["actor_id"], each["key"]) for each in found} == {
        ("admin", "admin", "blue")
    }
    assert {each["address"] for each in found} == {"192.0.2.7"}
    assert all("result" not in each for each in found)
    assert len({each["id"] for each in found}) == 3
    for each in found:
        assert before <= datetime.fromisoformat(each["time"]) <= datetime.now(UTC)


async def test_an_admin_by_role_is_told_by_name() -> None:
    """The id says who it was when the name has passed to somebody else."""
    boss = Principal(id="issued:1", name="boss", role=Role.ADMIN)
    desk = office(caller=known(boss))

    await desk.ask("POST", "/admin/keys", {"name": "blue"}, headers=[])

    (entry,) = await entries(desk)
    assert (entry["actor"], entry["actor_id"]) == ("boss", "issued:1")


async def test_the_address_is_the_callers_own() -> None:
    """Behind a proxy that is trusted, the one it tells of."""
    desk = office(trusted=TrustedProxies([ip_network("192.0.2.0/24")]))
    headers = [*KEY, (b"x-forwarded-for", b"203.0.113.9")]

    await desk.ask("POST", "/admin/keys", {"name": "blue"}, headers=headers)

    assert (await entries(desk))[0]["address"] == "203.0.113.9"


async def test_looking_is_no_change() -> None:
    """And what is refused before anything was tried is none either."""
    desk = office()
    for path in ("/admin/keys", "/admin/usage", "/admin/openapi.json"):
        await desk.ask("GET", path)
    await desk.ask("POST", "/admin/keys", {"name": "a b"})
    await desk.ask("POST", "/admin/keys", {"name": "blue"}, headers=[])

    assert await entries(desk) == []


async def test_a_change_that_was_refused_says_so() -> None:
    """In a second entry under the id of the first."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue"})
    await desk.ask("POST", "/admin/keys", {"name": "blue"})
    await desk.ask("DELETE", "/admin/keys/red")

    found = [
        (each["action"], each["key"], each.get("result"), each["id"])
        for each in await entries(desk)
    ]

    assert [each[:3] for each in found] == [
        ("create", "blue", None),
        ("create", "blue", None),
        ("create", "blue", "refused"),
        ("revoke", "red", None),
        ("revoke", "red", "refused"),
    ]
    assert found[1][3] == found[2][3] != found[0][3]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/keys"),
        ("POST", "/admin/keys/blue/rotate"),
        ("DELETE", "/admin/keys/blue"),
    ],
)
async def test_what_cannot_be_written_down_is_not_done(method: str, path: str) -> None:
    """A change that nobody could find out about later does not happen."""
    store = FailingStore()
    desk = office(store=store)
    secret = (await desk.ask("POST", "/admin/keys", {"name": "blue"})).document["key"]
    before = await desk.issued.all_keys()
    store.refuses = {"append"}

    answer = await desk.ask(method, path, {"name": "red"} if path == "/admin/keys" else {})

    assert answer.status == 503
    assert await desk.issued.all_keys() == before
    assert await desk.works(secret)


async def test_a_change_that_broke_off_says_so() -> None:
    """Perhaps it was done in part: somebody should look."""
    store = FailingStore()
    desk = office(store=store)
    store.refuses = {"put"}

    answer = await desk.ask("POST", "/admin/keys", {"name": "blue"})

    assert answer.status == 503
    assert [each.get("result") for each in await entries(desk)] == [None, "unfinished"]


async def test_a_stop_in_the_middle_is_written_down() -> None:
    """The process may be told to end at any moment."""
    store, reached = FailingStore(), asyncio.Event()
    desk = office(store=store)

    async def wait() -> None:
        reached.set()
        await asyncio.Event().wait()

    store.before_put = wait
    making = asyncio.create_task(desk.ask("POST", "/admin/keys", {"name": "blue"}))
    await reached.wait()
    making.cancel()
    await asyncio.wait([making])

    store.before_put = None
    assert making.cancelled()
    assert [each.get("result") for each in await entries(desk)] == [None, "unfinished"]


async def test_the_log_of_the_process_has_every_entry(caplog: pytest.LogCaptureFixture) -> None:
    """Structured and as a line; it is still there when the store is not."""
    store = FailingStore()
    desk = office(store=store)
    with caplog.at_level(logging.INFO, "llmproxy.audit"):
        made = await desk.ask("POST", "/admin/keys", {"name": "blue", "team": "sales"})
        store.refuses = {"put"}
        await desk.ask("DELETE", "/admin/keys/blue")

    records = [record for record in caplog.records if record.name == "llmproxy.audit"]
    kept = await entries(desk)
    assert [record.__dict__["audit"] for record in records] == kept
    assert [record.getMessage() for record in records] == [
        "create begun of key blue by 'admin' from 192.0.2.7",
        "revoke begun of key blue by 'admin' from 192.0.2.7",
        "revoke unfinished of key blue by 'admin' from 192.0.2.7",
    ]
    secrets = (made.document["key"], ADMIN_KEY)
    assert not any(secret in json.dumps(kept) + caplog.text for secret in secrets)


@pytest.mark.parametrize(
    ("query", "expected"), [("", 4), ("?last=3", 3), ("?last=1000", 4), ("?last=1&last=2", 2)]
)
async def test_the_last_entries_are_shown(query: str, expected: int) -> None:
    """Oldest first, as a log is read."""
    desk = office()
    for number in range(4):
        await desk.ask("POST", "/admin/keys", {"name": f"k{number}"})

    shown = [each["key"] for each in await entries(desk, query)]

    assert shown == [f"k{number}" for number in range(4)][-expected:]


@pytest.mark.parametrize("last", ["0", "-1", "1001", "x", "%D9%A1", "1e2", "9" * 5000])
async def test_how_many_is_a_number_within_bounds(last: str) -> None:
    """Nobody gets the memory of the proxy in one answer."""
    answer = await office().ask("GET", f"/admin/audit?last={last}")

    assert answer.status == 400


async def test_an_entry_that_cannot_be_read_hides_no_other() -> None:
    """The store is open to others than us."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue"})
    for garbage in (b"", b"{", b"5", b"{}"):
        await desk.store.append("audit", garbage, keep=100)
    await desk.ask("POST", "/admin/keys", {"name": "green"})

    assert [each["key"] for each in await entries(desk)] == ["blue", "green"]


async def test_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In entries, and in the length of each."""
    monkeypatch.setattr(audit, "KEPT", 2)
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "k0"})
    await desk.ask("POST", "/admin/keys", {"name": "k1", "models": ["m" * 1000] * 50})
    await desk.ask("POST", "/admin/keys", {"name": "k2", "note": "n" * 500})

    found = await entries(desk)

    assert [each["key"] for each in found] == ["k1", "k2"]
    assert len(found[0]["changed"]["models"]) == 500
    assert found[0]["changed"]["models"].endswith("…")
    assert found[1]["changed"]["note"] == "n" * 500


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (1.0004, "1970-01-01T00:00:01Z"),
        (4_073_544_000, "2099-01-31T12:00:00Z"),
        (9e10, "4821-12-26T16:00:00Z"),
        (9.9e11, "990000000000"),
    ],
)
def test_a_point_in_time(seconds: float | None, text: str | None) -> None:
    """In UTC, as dates may be written where one is asked for."""
    assert instant(seconds) == text


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *[("1h", 3600), ("90s", 90), ("15m", 900), ("15 min", 900), ("7d", 604_800), ("0", 0)],
        *[("2.5H", 9000), (" 60 ", 60), (0, 0), (1.5, 1.5), (3600, 3600), ("365d", 31_536_000)],
    ],
)
def test_a_length_of_time(given: object, seconds: float) -> None:
    """As people write it, or in seconds."""
    assert length(given) == seconds


@pytest.mark.parametrize(
    "given", ["", "h", "-1h", "1w", "1h30m", "366d", 1e300, float("nan"), float("inf"), -1, True]
)
def test_what_is_no_length_of_time(given: object) -> None:
    """Says what would be one."""
    with pytest.raises(ValueError, match="1h"):
        length(given)
