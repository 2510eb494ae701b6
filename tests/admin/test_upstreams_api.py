"""Upstreams over the admin API: how they are, and draining one."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from llmproxy.records import Principal, Role, Upstream
from llmproxy.routing.engine_load import EngineLoad
from tests.admin.office import ADMIN_KEY, FailingStore, known, office
from tests.support.client import request_bytes
from tests.support.registries import registry_of
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

SECRET = "sk-upstream-9f3KpQz71LmX"
GPU1 = Upstream(
    "gpu1",
    "http",
    "gpu1.internal",
    8000,
    preset="vllm",
    credentials=((b"authorization", b"Bearer " + SECRET.encode()),),
    weight=3,
    max_inflight=8,
    tags=frozenset({"fast", "eu"}),
)
GPU2 = Upstream("gpu2", "http", "gpu2.internal", 8000)


async def test_an_upstream_is_shown_as_it_stands() -> None:
    """State and configuration; neither its address nor its key."""
    registry = registry_of(GPU1, GPU2)
    first = registry.servers[0]
    first.up, first.detail, first.inflight = False, "connection refused", 2
    first.load = EngineLoad(running=3, waiting=1, kv_use=0.25)
    first.documents = {"llama": {"id": "llama"}}
    for _ in range(5):
        first.breaker.failed(probe=False, refused=True)

    answer = await office(registry=registry).ask("GET", "/admin/upstreams")

    shown = answer.document["data"]
    assert shown[0] == {
        "name": "gpu1",
        "preset": "vllm",
        "up": False,
        "detail": "connection refused",
        "draining": False,
        "breaker": "open",
        "inflight": 2,
        "models": ["llama"],
        "load": {"running": 3, "waiting": 1, "kv_use": 0.25},
        "weight": 3,
        "max_inflight": 8,
        "tags": ["eu", "fast"],
    }
    assert (shown[1]["models"], shown[1]["load"]) == (None, None)
    assert not any(word in answer.exchange.body.decode() for word in ("internal", "8000", SECRET))


async def test_one_can_be_looked_at_alone() -> None:
    """By its name."""
    desk = office(registry=registry_of(GPU1, GPU2))

    assert (await desk.ask("GET", "/admin/upstreams/gpu2")).document["name"] == "gpu2"
    assert (await desk.ask("GET", "/admin/upstreams/gpu3")).status == 404


async def test_draining_is_written_down() -> None:
    """Who, when, from where, which upstream; ending it too."""
    registry = registry_of(GPU1, GPU2)
    boss = Principal(id="issued:1", name="boss", role=Role.ADMIN)
    desk = office(registry=registry, caller=known(boss))

    for draining in (True, False):
        answer = await desk.ask(
            "PATCH", "/admin/upstreams/gpu1", {"draining": draining}, headers=[]
        )
        assert (answer.status, answer.document["draining"]) == (200, draining)
        assert registry.servers[0].draining is draining

    entries = (await desk.ask("GET", "/admin/audit")).document["data"]
    assert [(each["action"], each["upstream"], each["actor"]) for each in entries] == [
        ("drain", "gpu1", "boss"),
        ("undrain", "gpu1", "boss"),
    ]
    assert all("key" not in each and each["address"] == "192.0.2.7" for each in entries)


async def test_the_log_of_the_process_has_it_too(caplog: pytest.LogCaptureFixture) -> None:
    """In words."""
    desk = office(registry=registry_of(GPU1))
    with caplog.at_level(logging.INFO, "llmproxy.audit"):
        await desk.ask("PATCH", "/admin/upstreams/gpu1", {"draining": True})

    assert [record.getMessage() for record in caplog.records] == [
        "drain begun of upstream gpu1 by 'admin' from 192.0.2.7"
    ]


@pytest.mark.parametrize(
    "given",
    [{}, {"draining": "yes"}, {"draining": 1}, {"draining": None}, {"draining": True, "weight": 2}],
    ids=json.dumps,
)
async def test_only_draining_can_be_changed(given: Any) -> None:
    """To true or to false; anything else changes nothing."""
    registry = registry_of(GPU1)
    desk = office(registry=registry)

    assert (await desk.ask("PATCH", "/admin/upstreams/gpu1", given)).status == 400
    assert not registry.servers[0].draining
    assert (await desk.ask("GET", "/admin/audit")).document["data"] == []


@pytest.mark.parametrize("what", ["append", "get"])
async def test_what_cannot_be_kept_is_not_done(what: str) -> None:
    """Neither without an entry in the audit log nor without the other workers hearing of it."""
    store, registry = FailingStore(), registry_of(GPU1)
    desk = office(store=store, registry=registry)
    store.refuses = {what}

    answer = await desk.ask("PATCH", "/admin/upstreams/gpu1", {"draining": True})

    assert answer.status == 503
    assert not registry.servers[0].draining


async def test_where_workers_share_nothing_nothing_is_drained() -> None:
    """The others would go on: that is said rather than done by halves."""
    registry = registry_of(GPU1)
    desk = office(registry=registry, everywhere=False)

    answer = await desk.ask("PATCH", "/admin/upstreams/gpu1", {"draining": True})

    assert answer.status == 400
    assert "LLMPROXY_STORE" in answer.error["message"]
    assert not registry.servers[0].draining


async def test_an_unknown_upstream_is_no_entry() -> None:
    """Nothing was tried."""
    desk = office(registry=registry_of(GPU1))

    assert (await desk.ask("PATCH", "/admin/upstreams/gpu9", {"draining": True})).status == 404
    assert (await desk.ask("GET", "/admin/audit")).document["data"] == []


async def test_a_drained_upstream_gets_no_requests() -> None:
    """Through the whole proxy: the other one answers them all, until it is used again."""
    key = [(b"authorization", b"Bearer " + ADMIN_KEY.encode())]
    async with (
        scripted(json_answer({"ok": 1})) as first,
        scripted(json_answer({"ok": 2})) as second,
        proxied(
            replace(first.upstream, name="one"),
            replace(second.upstream, name="two"),
            admin_key=ADMIN_KEY,
            auth="off",
            middleware=(),
        ) as proxy,
    ):

        async def patch(draining: bool) -> int:
            body = json.dumps({"draining": draining}).encode()
            answer = await proxy.ask(
                request_bytes(b"/admin/upstreams/one", method=b"PATCH", headers=key, body=body)
            )
            return answer.status

        async def answered_by() -> set[int]:
            return {
                json.loads((await proxy.ask(request_bytes())).body).popitem()[1] for _ in range(6)
            }

        assert await patch(True) == 200
        assert await answered_by() == {2}
        assert await patch(False) == 200
        assert await answered_by() == {1, 2}
