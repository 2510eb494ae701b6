"""Health and metrics over HTTP, and who may see what."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmproxy.admin.health import Pages
from llmproxy.admin.keys import AdminKey
from llmproxy.metrics import Metrics
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.records import Upstream
from llmproxy.routing.health import Health
from llmproxy.types import Header
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context
from tests.support.calls import eventually
from tests.support.client import Answer, request_bytes
from tests.support.ports import free_port
from tests.support.registries import registry_of
from tests.support.rig import Rig, proxied
from tests.support.upstream import Exchange as EngineExchange
from tests.support.upstream import json_answer, scripted

ADMIN_KEY = "admin-Zk3v8Qp1"
KEY: list[Header] = [(b"authorization", b"Bearer " + ADMIN_KEY.encode())]
MODELS = json_answer({"object": "list", "data": [{"id": "llama"}, {"id": "phi"}]})
OPEN = ["/health/live", "/health/ready"]
GUARDED = ["/health", "/health/upstreams", "/metrics"]


async def get(proxy: Rig, path: str, *, method: bytes = b"GET", headers: Any = None) -> Answer:
    return await proxy.ask(request_bytes(path.encode(), method=method, headers=headers, body=None))


def dead() -> Upstream:
    return Upstream("dead", "http", "127.0.0.1", free_port())


async def test_alive_needs_nothing() -> None:
    """Without any engine the process lives all the same."""
    async with proxied(dead()) as proxy:
        answer = await get(proxy, "/health/live")

    assert answer.status == 200
    assert json.loads(answer.body) == {"status": "ok"}


async def test_ready_needs_one_engine() -> None:
    """One that answers is enough to serve."""
    async with scripted(MODELS) as engine, proxied(engine.upstream, dead()) as proxy:
        answer = await get(proxy, "/health/ready")

    assert answer.status == 200


async def test_without_any_engine_nobody_should_send_work() -> None:
    """503, and when to ask again; no word of which engine it is."""
    async with proxied(dead()) as proxy:
        answer = await get(proxy, "/health/ready")

    assert answer.status == 503
    assert answer.header(b"retry-after") is not None
    assert b"dead" not in answer.body


async def test_while_draining_nobody_should_send_work() -> None:
    """Whatever the engines say; life is another question."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        proxy.app.draining = True
        ready = await get(proxy, "/health/ready")
        live = await get(proxy, "/health/live")

    assert ready.status == 503
    assert json.loads(ready.body) == {"status": "draining"}
    assert live.status == 200


async def test_the_summary_counts_the_engines() -> None:
    """Degraded is said, and is not an alarm as long as one is up."""
    async with scripted(MODELS) as engine, proxied(engine.upstream, dead()) as proxy:
        answer = await get(proxy, "/health")

    assert answer.status == 200
    assert json.loads(answer.body) == {
        "status": "degraded",
        "upstreams": {"up": 1, "configured": 2},
        "parts": ["upstreams"],
    }


async def test_the_detail_names_what_is_wrong() -> None:
    """Which engine, since when no longer, which models it has, how its pool stands."""
    async with scripted(MODELS) as engine, proxied(engine.upstream, dead()) as proxy:
        answer = await get(proxy, "/health/upstreams")

    detail = json.loads(answer.body)
    assert detail["engine"]["up"] is True
    assert detail["engine"]["models"] == ["llama", "phi"]
    assert detail["engine"]["connections"].keys() == {"open", "idle", "waiting"}
    assert detail["dead"]["up"] is False
    assert detail["dead"]["detail"] == "connection refused"


async def test_metrics_can_be_scraped() -> None:
    """In the format, and under the type, that Prometheus expects; probes and requests in it."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        await get(proxy, "/health/ready")
        await proxy.ask(request_bytes())
        answer = await get(proxy, "/metrics")

    kind = answer.header(b"content-type")
    assert kind is not None and kind.startswith(b"text/plain; version=")
    families = {each.name for each in text_string_to_metric_families(answer.body.decode())}
    assert {"llmproxy_requests", "llmproxy_upstream_up"} <= families
    assert b'llmproxy_upstream_up{upstream="engine"} 1.0' in answer.body


async def test_the_lag_of_the_event_loop_is_measured() -> None:
    """Fifty times a second, whether or not anybody asks for anything."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        await get(proxy, "/health/live")
        before = proxy.sample("event_loop_lag_seconds_count")
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.35)
        await eventually(
            lambda: proxy.sample("event_loop_lag_seconds_count") >= before + 5, "it was measured"
        )
        taken = proxy.sample("event_loop_lag_seconds_count") - before
        took = asyncio.get_running_loop().time() - began

    assert 5 <= taken <= 50 * took + 1
    assert took < 5


@pytest.mark.parametrize("path", [*OPEN, *GUARDED])
async def test_head_tells_the_same_without_a_body(path: str) -> None:
    """Load balancers like to ask that way."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        whole = await get(proxy, path)
        head = await get(proxy, path, method=b"HEAD")

    assert head.status == whole.status == 200
    assert head.header(b"content-type") == whole.header(b"content-type")
    assert head.body == b""


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS"], ids=bytes.decode)
@pytest.mark.parametrize("path", [*OPEN, *GUARDED])
async def test_a_page_can_only_be_read(path: str, method: bytes) -> None:
    """405 says how."""
    async with scripted(MODELS) as engine, proxied(engine.upstream, middleware=()) as proxy:
        answer = await get(proxy, path, method=method)

    assert answer.status == 405
    assert answer.header(b"allow") == b"GET, HEAD"
    assert engine.accepted == 0


@pytest.mark.parametrize("path", [*OPEN, *GUARDED])
async def test_a_page_is_not_kept_by_caches(path: str) -> None:
    """What is true now may not be in a second."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        answer = await get(proxy, path)

    assert answer.header(b"cache-control") == b"no-store"


@pytest.mark.parametrize("path", ["/health/nothing", "/health/", "/metrics/", "/admin/keys"])
async def test_there_are_no_other_pages(path: str) -> None:
    """The admin API is not built yet and does not answer."""
    async with scripted(MODELS) as engine, proxied(engine.upstream) as proxy:
        answer = await get(proxy, path)

    assert answer.status == 404


async def test_a_flock_of_checks_is_one_probe() -> None:
    """Readiness is asked by every load balancer at once; the engine is asked for it once."""
    async with scripted(MODELS) as engine, proxied(engine.upstream, middleware=()) as proxy:
        answers = await asyncio.gather(*(get(proxy, "/health/ready") for _ in range(20)))

    assert {answer.status for answer in answers} == {200}
    assert len(engine.requests) == 2  # its health and its models


async def test_a_checker_who_leaves_takes_nothing_from_the_others() -> None:
    """The probe that it began goes on for them."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def script(exchange: EngineExchange) -> None:
        await exchange.request()
        arrived.set()
        await go_on.wait()
        exchange.json({"data": [{"id": "llama"}]})

    async with scripted(script) as engine, proxied(engine.upstream, middleware=()) as proxy:
        async with proxy.client() as leaver:
            leaver.send(request_bytes(b"/health/ready", method=b"GET", body=None))
            await arrived.wait()
            other = asyncio.create_task(get(proxy, "/health/ready"))
            await asyncio.sleep(0.01)
        go_on.set()
        answer = await other

    assert answer.status == 200
    assert engine.accepted == 1


async def test_an_asker_who_is_cancelled_takes_nothing_from_the_others() -> None:
    """The probe is everybody's."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def script(exchange: EngineExchange) -> None:
        await exchange.request()
        arrived.set()
        await go_on.wait()
        exchange.json({"data": [{"id": "llama"}]})

    async with scripted(script) as engine:
        registry = registry_of(engine.upstream)
        health = Health(registry, Metrics())
        asking = [asyncio.create_task(health.look()) for _ in range(2)]
        await arrived.wait()
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        go_on.set()
        found = await asking[1]
        await registry.aclose()

    assert asking[0].cancelled()
    assert found["engine"].ok


@asynccontextmanager
async def pages(*, open_to_all: bool, key: str | None) -> AsyncIterator[dict[str, Any]]:
    """Build the pages alone, as they stand inside the layers."""
    async with scripted(MODELS) as engine:
        registry, metrics = registry_of(engine.upstream), Metrics()
        health = Health(registry, metrics)
        built = Pages(
            health=health,
            metrics=metrics,
            admin_key=AdminKey(key),
            open_to_all=open_to_all,
            draining=lambda: False,
        )
        yield {path.decode(): ErrorsMiddleware(page) for path, page in built.by_path().items()}
        health.close()
        await registry.aclose()


async def see(page: Any, *, server: Any, headers: Any = ()) -> Exchange:
    return await drive(
        page, ctx=make_context(), method="GET", headers=headers, extra={"server": server}
    )


LOOPBACK = [("127.0.0.1", 4000), ("127.8.8.8", 1), ("::1", 4000), ("/run/llmproxy.sock", None)]
ELSEWHERE = [("192.0.2.1", 4000), ("0.0.0.0", 4000), ("::", 4000), ("localhost.evil", 80), None]


@pytest.mark.parametrize("server", LOOPBACK, ids=str)
@pytest.mark.parametrize("path", GUARDED)
async def test_on_loopback_the_detail_is_open(path: str, server: Any) -> None:
    """Only this host can ask."""
    async with pages(open_to_all=True, key=None) as by_path:
        seen = await see(by_path[path], server=server)

    assert seen.status == 200


@pytest.mark.parametrize("server", ELSEWHERE, ids=str)
@pytest.mark.parametrize("path", GUARDED)
async def test_elsewhere_the_detail_needs_the_key(path: str, server: Any) -> None:
    """Whatever the settings think: a host that mounts us binds where it likes."""
    async with pages(open_to_all=True, key=ADMIN_KEY) as by_path:
        without = await see(by_path[path], server=server)
        wrong = await see(
            by_path[path], server=server, headers=[(b"authorization", b"Bearer admin-Zk3v8Qp2")]
        )
        right = await see(by_path[path], server=server, headers=KEY)

    assert without.status == wrong.status == 401
    assert b"engine" not in without.body + wrong.body
    assert right.status == 200


@pytest.mark.parametrize("path", GUARDED)
async def test_a_proxy_that_listens_to_others_guards_its_detail(path: str) -> None:
    """Also from those who come over loopback: a reverse proxy on this host does."""
    async with pages(open_to_all=False, key=ADMIN_KEY) as by_path:
        seen = await see(by_path[path], server=LOOPBACK[0])

    assert seen.status == 401


@pytest.mark.parametrize("path", GUARDED)
async def test_without_a_key_the_detail_stays_closed(path: str) -> None:
    """No key configured means that nobody has it."""
    async with pages(open_to_all=False, key=None) as by_path:
        seen = await see(by_path[path], server=LOOPBACK[0], headers=[(b"x-api-key", b"")])

    assert seen.status == 401


@pytest.mark.parametrize("path", OPEN)
async def test_life_and_readiness_are_open_to_all(path: str) -> None:
    """Machines ask, without a key, from anywhere."""
    async with pages(open_to_all=False, key=None) as by_path:
        seen = await see(by_path[path], server=ELSEWHERE[0])

    assert seen.status == 200
