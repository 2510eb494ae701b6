"""The admin API: who may use it, and what becomes of keys."""

import hashlib
import time
from typing import Any

import pytest

from llmproxy import clock
from llmproxy.admin import request_body
from llmproxy.errors import StoreUnavailable
from llmproxy.protocol.endpoints import CHAT
from llmproxy.records import InferenceRequest, Principal, Role
from llmproxy.settings import Settings
from llmproxy.settings.engines import FIELDS
from llmproxy.settings.issuing import why_not_issued
from llmproxy.types import Header, Scope
from tests.admin.office import ADMIN_KEY, FailingStore, known, office

PAGES = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys/blue"),
    ("DELETE", "/admin/keys/blue"),
    ("POST", "/admin/keys/blue/rotate"),
    ("GET", "/admin/usage"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/openapi.json"),
    ("GET", "/admin/nothing"),
    ("GET", "/admin/"),
]
BOSS = Principal(id="key:boss", name="boss", role=Role.ADMIN)
EVERYTHING: dict[str, Any] = {
    "name": "blue",
    "team": "sales",
    "tier": "gold",
    "tags": ["eu", "web"],
    "role": "viewer",
    "models": ["llama-*"],
    "routes": ["chat"],
    "networks": ["10.0.0.0/8"],
    "limits": ["60 req/min per key", "8 concurrent per key"],
    "budget": ["10 usd/day per key", "soft:5 usd/day per key"],
    "weight": 2.5,
    "priority": 7,
    "max_tokens": 1000,
    "expires": "2099-01-31T12:00:00Z",
    "note": "for the web shop",
    "signing": True,
    "unsigned": True,
}


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_without_an_admin_key_nothing_is_there(method: str, path: str) -> None:
    """Not for an admin by role either: nobody has said that there should be an admin API."""
    desk = office(admin_key=None, caller=known(BOSS))

    answer = await desk.ask(method, path, {})

    assert answer.status == 404
    assert answer.error["code"] == "not_found"


@pytest.mark.parametrize(("method", "path"), PAGES)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer " + ADMIN_KEY[:-1].encode())],
        [(b"authorization", b"Basic " + ADMIN_KEY.encode())],
        [(b"cookie", ADMIN_KEY.encode())],
    ],
    ids=["nothing", "almost", "basic", "cookie"],
)
async def test_strangers_learn_nothing(method: str, path: str, headers: list[Header]) -> None:
    """Neither which paths there are nor which keys, and they send no body."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue"})

    answer = await desk.ask(method, path, {"name": "red"}, headers=headers)

    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.exchange.taken == 0


@pytest.mark.parametrize("role", [Role.CALLER, Role.VIEWER])
async def test_other_roles_are_strangers(role: Role) -> None:
    """Whoever may look at metrics may not look at keys."""
    desk = office(caller=known(Principal(id="key:x", name="x", role=role)))

    answer = await desk.ask("GET", "/admin/keys", headers=[])

    assert answer.status == 401


@pytest.mark.parametrize("notice", [None, "nobody is asked for such a key yet"])
async def test_a_new_key_that_nobody_is_asked_for_says_so(notice: str | None) -> None:
    """Whoever reads the answer would take the door to be closed."""
    desk = office(notice=notice)

    made = await desk.ask("POST", "/admin/keys", {"name": "blue"})
    rotated = await desk.ask("POST", "/admin/keys/blue/rotate", {})

    assert made.document["notice"] == rotated.document["notice"] == notice


async def test_an_admin_by_role_is_let_in() -> None:
    """With a key of its own, so that the log can tell one admin from another."""
    desk = office(caller=known(BOSS))

    answer = await desk.ask("GET", "/admin/keys", headers=[])

    assert answer.status == 200


async def test_an_admin_for_other_routes_is_refused() -> None:
    """What a key may call, it may call as admin too, and nothing else."""
    boss = Principal(id="key:boss", name="boss", role=Role.ADMIN, routes=("chat",))
    desk = office(caller=known(boss))

    answer = await desk.ask("GET", "/admin/keys", headers=[])

    assert answer.status == 403


async def test_while_the_store_is_away_nobody_is_a_stranger() -> None:
    """The key may be a good one: 503 and not 401. The admin key needs no store."""

    async def caller(scope: Scope) -> Principal | None:
        raise StoreUnavailable("Keys cannot be checked.", retry_after=5)

    desk = office(caller=caller)

    unknown = await desk.ask("GET", "/admin/keys", headers=[])
    admin = await desk.ask("GET", "/admin/keys")

    assert unknown.status == 503
    assert admin.status == 200


async def test_a_signature_covers_the_body() -> None:
    """Somebody on the way must not turn one new key into another."""
    signer = Principal(id="key:boss", name="boss", method="hmac", role=Role.ADMIN)
    desk = office(caller=known(signer))
    signed = hashlib.sha256(b'{"name": "blue"}').hexdigest().encode()
    headers = [(b"x-content-sha256", signed)]

    changed = await desk.ask("POST", "/admin/keys", {"name": "red"}, headers=headers)
    genuine = await desk.ask("POST", "/admin/keys", {"name": "blue"}, headers=headers)

    assert changed.status == 401
    assert genuine.status == 201
    assert (await desk.ask("GET", "/admin/keys/red")).status == 404


async def test_a_new_key_works_and_is_shown_once() -> None:
    """In the answer to the one who made it, and in nothing that is kept or told later."""
    desk = office()

    made = await desk.ask("POST", "/admin/keys", {"name": "blue", "signing": True})
    later = [
        await desk.ask("GET", path) for path in ("/admin/keys", "/admin/keys/blue", "/admin/audit")
    ]

    secret = made.document["key"]
    assert made.status == 201
    assert made.exchange.header(b"cache-control") == b"no-store"
    assert secret.startswith("sk-llmproxy-")
    assert await desk.works(secret)
    assert all(answer.status == 200 for answer in later)
    kept = [await desk.store.get(name) or b"" for name in await desk.store.names("")]
    assert secret.encode() not in b"".join([*kept, *(each.exchange.body for each in later)])


async def test_all_fields_come_back_as_they_were_said() -> None:
    """In one way to write them, whatever it was before."""
    desk = office()

    made = await desk.ask("POST", "/admin/keys", EVERYTHING)
    found = await desk.ask("GET", "/admin/keys/blue")

    assert made.status == 201
    assert {name: found.document[name] for name in EVERYTHING} == EVERYTHING
    assert found.document["state"] == "active"
    assert found.document["source"] == "issued"
    assert [key["state"] for key in found.document["keys"]] == ["active"]
    listed = await desk.ask("GET", "/admin/keys")
    assert listed.document == {"object": "list", "data": [found.document]}


async def test_fields_may_be_text_or_null() -> None:
    """As a command line has them; null is what was not said."""
    desk = office()
    given = {"name": "blue", "tags": "eu|web", "limits": "60 req/min|8 concurrent", "team": None}

    made = await desk.ask("POST", "/admin/keys", given)

    assert made.document["tags"] == ["eu", "web"]
    assert made.document["limits"] == ["60 req/min per key", "8 concurrent per key"]
    assert made.document["team"] is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "blue", "limits": "many"}, "limits"),
        ({"name": "blue", "budget": "10 eur/day"}, "budget"),
        ({"name": "blue", "role": "king"}, "role"),
        ({"name": "blue", "models": []}, "models"),
        ({"name": "blue", "networks": "everywhere"}, "networks"),
        ({"name": "blue", "expires": "soon"}, "expires"),
        ({"name": "blue", "expires": "2020-01-31"}, "expires"),
        ({"name": "blue", "weight": True}, "weight"),
        ({"name": "blue", "note": "a\nb"}, "note"),
        ({"name": "blue", "signing": "yes"}, "signing"),
        ({"name": "blue", "modles": "llama"}, "models"),
        ({"name": "blue", "key": "sk-c4n4ry"}, "key"),
        ([], "object"),
        ("blue", "object"),
    ],
    ids=str,
)
async def test_what_makes_no_key_changes_nothing(given: object, named: str) -> None:
    """400 names the field; no value is repeated, and the log of changes has nothing to tell."""
    desk = office()

    answer = await desk.ask("POST", "/admin/keys", given)

    assert answer.status == 400
    assert named in answer.error["message"]
    assert "c4n4ry" not in answer.error["message"]
    assert (await desk.ask("GET", "/admin/keys")).document["data"] == []
    assert (await desk.ask("GET", "/admin/audit")).document["data"] == []


async def test_all_faults_are_told_at_once() -> None:
    """Nobody should have to ask once for each."""
    answer = await office().ask("POST", "/admin/keys", {"name": "a b", "limits": "x", "note": "\n"})

    assert all(f"{word}" in answer.error["message"] for word in ("name", "`limits`", "`note`"))


async def test_a_name_has_one_key() -> None:
    """Until it is revoked; then it can be given away again."""
    desk = office()
    first = await desk.ask("POST", "/admin/keys", {"name": "blue"})

    taken = await desk.ask("POST", "/admin/keys", {"name": "blue", "team": "other"})
    await desk.ask("DELETE", "/admin/keys/blue")
    free = await desk.ask("POST", "/admin/keys", {"name": "blue", "team": "other"})

    assert taken.status == 409
    assert taken.error["code"] == "conflict"
    assert free.status == 201
    assert not await desk.works(first.document["key"])
    assert await desk.works(free.document["key"])


async def test_configured_keys_are_shown_and_left_alone() -> None:
    """They change where they were configured; no second caller gets their name."""
    desk = office(configured="green:sk-green-8f3KpQz71LmX;team=sales;note=old")

    listed = await desk.ask("GET", "/admin/keys")
    seen = await desk.ask("GET", "/admin/keys/green")
    answers = [
        await desk.ask("POST", "/admin/keys", {"name": "green"}),
        await desk.ask("POST", "/admin/keys/green/rotate"),
        await desk.ask("DELETE", "/admin/keys/green"),
    ]

    assert listed.document["data"] == [seen.document]
    assert seen.document["source"] == "configured"
    assert seen.document["team"] == "sales"
    assert seen.document["note"] == "old"
    assert b"8f3KpQz71LmX" not in listed.exchange.body
    assert [answer.status for answer in answers] == [409, 409, 409]


async def test_a_rotation_lets_both_work_for_a_while() -> None:
    """So that whoever uses the key has time to change it."""
    desk = office()
    old = (await desk.ask("POST", "/admin/keys", EVERYTHING)).document["key"]

    rotated = await desk.ask("POST", "/admin/keys/blue/rotate", {"overlap": "15m"})
    shown = await desk.ask("GET", "/admin/keys/blue")

    assert rotated.status == 200
    assert rotated.document["overlap"] == 900
    assert await desk.works(old)
    assert await desk.works(rotated.document["key"])
    assert rotated.document["key"] != old
    assert [key["state"] for key in shown.document["keys"]] == ["active", "ending"]
    assert {name: shown.document[name] for name in EVERYTHING} == EVERYTHING


@pytest.mark.parametrize("overlap", [0, "0s"])
async def test_a_rotation_may_end_the_old_key_at_once(overlap: object) -> None:
    """For one that has leaked."""
    desk = office()
    old = (await desk.ask("POST", "/admin/keys", {"name": "blue"})).document["key"]

    await desk.ask("POST", "/admin/keys/blue/rotate", {"overlap": overlap})

    assert not await desk.works(old)


async def test_without_an_overlap_it_is_an_hour() -> None:
    """A request without any body is one that says nothing."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue"})

    rotated = await desk.ask("POST", "/admin/keys/blue/rotate")

    assert rotated.document["overlap"] == 3600


@pytest.mark.parametrize(
    "given",
    [
        *[{"overlap": -1}, {"overlap": "soon"}, {"overlap": True}, {"overlap": 1e9}],
        *[{"overlap": []}, {"overlap": "1w"}, {"overlap": None}, {"over": "1h"}],
        [1],
    ],
    ids=str,
)
async def test_what_is_no_overlap_rotates_nothing(given: object) -> None:
    """The key must not be lost to a slip of the pen."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue"})

    answer = await desk.ask("POST", "/admin/keys/blue/rotate", given)

    assert answer.status == 400
    assert len((await desk.ask("GET", "/admin/keys/blue")).document["keys"]) == 1


async def test_a_key_that_has_expired_is_not_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one would have the same end: it would be handed out and never work."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "blue", "expires": time.time() + 60})
    monkeypatch.setattr(clock, "wall", lambda: time.time() + 61)

    answer = await desk.ask("POST", "/admin/keys/blue/rotate", {})

    assert answer.status == 400
    assert answer.error["param"] == "expires"
    assert len((await desk.ask("GET", "/admin/keys/blue")).document["keys"]) == 1


async def test_a_revoked_key_opens_nothing_any_more() -> None:
    """All keys of the name, those of an overlap too; doing it again does no harm."""
    desk = office()
    old = (await desk.ask("POST", "/admin/keys", {"name": "blue"})).document["key"]
    new = (await desk.ask("POST", "/admin/keys/blue/rotate")).document["key"]

    answers = [await desk.ask("DELETE", "/admin/keys/blue") for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].document == {"name": "blue", "state": "revoked"}
    assert not await desk.works(old)
    assert not await desk.works(new)
    assert (await desk.ask("GET", "/admin/keys/blue")).document["state"] == "revoked"
    assert (await desk.ask("POST", "/admin/keys/blue/rotate")).status == 404


@pytest.mark.parametrize("name", ["blue", "%F0%9F%98%80", "a%2Fb", "..", "a%20b"])
async def test_a_key_that_is_not_there(name: str) -> None:
    """404 whatever is asked of it."""
    desk = office()

    answers = [
        await desk.ask("GET", f"/admin/keys/{name}"),
        await desk.ask("DELETE", f"/admin/keys/{name}"),
        await desk.ask("POST", f"/admin/keys/{name}/rotate"),
    ]

    assert [answer.status for answer in answers] == [404, 404, 404]


async def test_a_name_may_be_escaped_in_a_path() -> None:
    """Clients escape `@` although they need not."""
    desk = office()
    await desk.ask("POST", "/admin/keys", {"name": "anna@example"})

    answer = await desk.ask("GET", "/admin/keys/anna%40example")

    assert answer.status == 200


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/key", "/admin/keys/", "/admin/keys/a/b", "/admin/keys/a/rotate/x"]
)
async def test_there_are_no_other_pages(path: str) -> None:
    """Whoever may look is told so."""
    assert (await office().ask("GET", path)).status == 404


async def test_other_methods_are_told_which_there_are() -> None:
    """405, and HEAD is as good as GET."""
    desk = office()

    wrong = await desk.ask("PATCH", "/admin/keys")
    head = await desk.ask("HEAD", "/admin/keys")

    assert wrong.status == 405
    assert wrong.exchange.header(b"allow") == b"GET, HEAD, POST"
    assert head.status == 200


@pytest.mark.parametrize("pieces", [1, 3], ids=["at_once", "in_pieces"])
async def test_a_body_has_a_bound(pieces: int) -> None:
    """64 KiB, whatever the head says of it."""
    desk = office()
    body = [b" " * (request_body.LARGEST // pieces + 1)] * pieces

    answer = await desk.ask("POST", "/admin/keys", body=body)

    assert answer.status == 413


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    """The head is enough."""
    headers = [(b"x-api-key", ADMIN_KEY.encode()), (b"content-length", b"65537")]

    answer = await office().ask("POST", "/admin/keys", {}, headers=headers)

    assert answer.status == 413
    assert answer.exchange.taken == 0


async def test_a_compressed_body_is_refused() -> None:
    """A bomb cannot be told from a key."""
    headers = [(b"x-api-key", ADMIN_KEY.encode()), (b"content-encoding", b"gzip")]

    assert (await office().ask("POST", "/admin/keys", {}, headers=headers)).status == 415


async def test_a_body_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to send and stops does not keep us."""
    monkeypatch.setattr(request_body, "WITHIN", 0.02)

    answer = await office().ask("POST", "/admin/keys", body=[b"{"], leave_in_body=9)

    assert answer.status == 408


async def test_a_body_that_is_no_json() -> None:
    """Is told apart from JSON that asks for nothing sensible."""
    answer = await office().ask("POST", "/admin/keys", body=b"name=blue")

    assert answer.status == 400
    assert answer.error["code"] == "invalid_json"


async def test_who_leaves_in_the_middle_makes_no_key() -> None:
    """Half a wish is none."""
    desk = office()

    answer = await desk.ask("POST", "/admin/keys", body=[b'{"name":', b'"blue"}'], leave_in_body=1)

    assert answer.status is None
    assert await desk.issued.all_keys() == []


@pytest.mark.parametrize(
    ("refuses", "method", "path"),
    [
        ("names", "GET", "/admin/keys"),
        ("get", "GET", "/admin/keys/blue"),
        ("put", "POST", "/admin/keys"),
        ("get", "DELETE", "/admin/keys/blue"),
        ("get", "POST", "/admin/keys/blue/rotate"),
        ("read", "GET", "/admin/usage"),
        ("entries", "GET", "/admin/audit"),
    ],
)
async def test_a_store_that_is_away(refuses: str, method: str, path: str) -> None:
    """503 and when to ask again: nobody is told that there is no such key."""
    store = FailingStore()
    desk = office(store=store, limit="5 req/min")
    await desk.ask("POST", "/admin/keys", {"name": "blue"})
    store.refuses = {refuses}

    answer = await desk.ask(method, path, {"name": "red"} if path == "/admin/keys" else {})

    assert answer.status == 503
    assert answer.error["code"] == "store_unavailable"
    assert answer.exchange.header(b"retry-after") is not None


async def test_usage_tells_how_limits_and_budgets_stand() -> None:
    """Of configured and issued keys, what is held for requests under way included."""
    desk = office(
        configured="green:sk-green-8f3KpQz71LmX;team=sales",
        limit="10 req/min, 100 tok/min per model, 5 req/min per ip, 7 concurrent per team",
        budget="1000 tok/month",
    )
    await desk.ask("POST", "/admin/keys", {"name": "blue", "limits": "4 req/h", "team": "sales"})
    blue = (await desk.issued.named("blue"))[0].principal
    asked = InferenceRequest(model="llama", max_tokens=20, prompt_bytes=40)
    await desk.limiter.reserve(blue, "192.0.2.1", CHAT, asked)

    usage = await desk.ask("GET", "/admin/usage")

    green, issued = usage.document["data"]
    assert (green["name"], green["source"]) == ("green", "configured")
    assert {each["text"]: each["used"] for each in green["limits"]} == {
        "10 req/min per key": 0,
        "7 concurrent per team": 1,  # the team's, which blue is in
    }
    assert (issued["name"], issued["source"], issued["id"]) == ("blue", "issued", blue.id)
    assert {each["text"]: each["left"] for each in issued["limits"]} == {
        "4 req/hour per key": pytest.approx(3, abs=0.01),
        "7 concurrent per team": 6,
    }
    (budget,) = issued["budgets"]
    assert budget["text"] == "1000 tok/month per key"
    assert budget["kind"] == "hard"
    assert budget["amount"] == 1000
    assert 20 <= budget["used"] <= 60
    assert budget["left"] == 1000 - budget["used"]
    assert 0 < budget["resets_in"] <= 31 * 86_400


async def test_usage_shows_a_caller_once() -> None:
    """However many keys it has just now."""
    desk = office(limit="5 req/min")
    await desk.ask("POST", "/admin/keys", {"name": "blue"})
    await desk.ask("POST", "/admin/keys/blue/rotate")

    usage = await desk.ask("GET", "/admin/usage")

    assert [each["name"] for each in usage.document["data"]] == ["blue"]


async def test_a_budget_in_total_never_resets() -> None:
    """JSON has no infinity."""
    desk = office(configured="green:sk-green-8f3KpQz71LmX", budget="1000 tok")

    usage = await desk.ask("GET", "/admin/usage")

    assert usage.document["data"][0]["budgets"][0]["resets_in"] is None


async def test_a_key_that_would_not_be_held_to_its_word_is_not_made() -> None:
    """A limit that nobody keeps is worse than none."""
    desk = office(objections=lambda fields: ["nobody counts"] if "limits" in fields else [])

    refused = await desk.ask("POST", "/admin/keys", {"name": "blue", "limits": "5 req/min"})
    plain = await desk.ask("POST", "/admin/keys", {"name": "blue"})

    assert refused.status == 400
    assert "nobody counts" in refused.error["message"]
    assert plain.status == 201


@pytest.mark.parametrize(
    ("settings", "fields", "cause"),
    [
        ({}, {}, None),
        ({}, {"limits": "5 req/min", "budget": "5 tok/day"}, None),
        ({"middleware": "auth"}, {"limits": "5 req/min"}, "rate_limit"),
        ({"middleware": "auth"}, {"budget": "5 tok/day"}, "rate_limit"),
        ({"middleware": "auth"}, {"team": "sales"}, None),
        ({}, {"budget": "5 usd/day"}, "LLMPROXY_PRICES"),
        ({"prices": "llama=1:2"}, {"budget": "5 usd/day"}, None),
        ({"workers": 2}, {}, "LLMPROXY_STORE"),
        ({"workers": 2, "store": "redis://h"}, {"limits": "5 req/min"}, None),
    ],
    ids=str,
)
def test_what_a_key_needs_of_the_configuration(
    settings: dict[str, Any], fields: dict[str, object], cause: str | None
) -> None:
    """The same as a configured key needs, and a store that every worker sees."""
    wrong = why_not_issued(Settings(**settings), FIELDS.read(fields))

    assert bool(wrong) is (cause is not None)
    assert cause is None or cause in wrong[0]
