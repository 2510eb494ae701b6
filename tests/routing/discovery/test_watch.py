"""The registry is told of what there is, whatever becomes of those who say it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from llmproxy.records import Upstream
from llmproxy.routing.discovery import addresses, server_file, watch
from llmproxy.routing.discovery.source import LookFailed, Place, Source, servers_at
from llmproxy.routing.discovery.watch import Discovery, servers_now
from llmproxy.routing.registry import Registry
from llmproxy.settings.upstreams import read_server_file
from llmproxy.transport.addresses import Address
from llmproxy.transport.never_called import is_forbidden
from tests.settings.test_templates import template
from tests.support.registries import CONFIGURED, registry_of
from tests.support.wire import patience

READ = partial(read_server_file, environ={})
POOL = template("pool=dns+http://gpu.example")


def listing(path: Path) -> Upstream:
    return Upstream("listed", "", "", 0, path=str(path), found_by="file")


class Told:
    """A source that says what the test says."""

    pause = 0.0

    def __init__(self) -> None:
        self.says: Sequence[str] | Exception = ()
        self.looks = 0
        self.closed = False
        self._looked = asyncio.Condition()

    async def look(self) -> Sequence[Upstream]:
        async with self._looked:
            self.looks += 1
            self._looked.notify_all()
        if isinstance(self.says, Exception):
            raise self.says
        return servers_at(POOL, [Place(host, 80) for host in self.says])

    async def aclose(self) -> None:
        self.closed = True

    async def saying(self, *hosts: str) -> None:
        await self._say(hosts)

    async def failing(self, error: Exception) -> None:
        await self._say(error)

    async def _say(self, said: Sequence[str] | Exception) -> None:
        """Say it, and wait until it has been heard for certain."""
        self.says = said
        heard = self.looks + 2
        async with patience("it was asked again"), self._looked:
            await self._looked.wait_for(lambda: self.looks >= heard)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    source = Told()

    def source_of(template: Upstream, _: object) -> Source:
        return source

    monkeypatch.setattr(watch, "source_of", source_of)
    monkeypatch.setattr(watch, "AFTER_FAILURE", 0.0)
    yield source
    assert source.closed


@asynccontextmanager
async def discovering(
    *templates: Upstream, registry: Registry | None = None
) -> AsyncIterator[Registry]:
    registry = registry or registry_of()
    discovery = Discovery(registry, templates, read=READ, forbidden=is_forbidden)
    running = asyncio.create_task(discovery.run())
    try:
        async with patience("every source was asked"):
            await discovery.first_look()
        yield registry
    finally:
        running.cancel()
        await asyncio.wait([running])
        await registry.aclose()
        assert running.cancelled(), running.exception()


def hosts(registry: Registry) -> list[str]:
    return [server.upstream.host for server in registry.servers]


async def test_servers_come_and_go(told: Told) -> None:
    """Who stays is the same server as before."""
    async with discovering(POOL) as registry:
        await told.saying("a", "b")
        assert hosts(registry) == ["a", "b"]
        stays = registry.servers[1]

        await told.saying("b", "c")
        assert hosts(registry) == ["b", "c"]
        assert registry.servers[0] is stays


async def test_a_source_that_fails_keeps_what_it_had(told: Told) -> None:
    """Whatever it raises."""
    async with discovering(POOL) as registry:
        await told.saying("a")
        for error in (LookFailed("no answer"), OSError("disk"), KeyError("bug")):
            await told.failing(error)
            assert hosts(registry) == ["a"]

        await told.saying("b")
        assert hosts(registry) == ["b"]


async def test_an_empty_answer_empties(told: Told) -> None:
    """That there is none is an answer; others' servers are not touched by it."""
    registry = registry_of(Upstream("fixed", "http", "127.0.0.1", 9))
    async with discovering(POOL, registry=registry):
        await told.saying("a")
        assert hosts(registry) == ["127.0.0.1", "a"]

        await told.saying()
        assert hosts(registry) == ["127.0.0.1"]
        registry.replace(CONFIGURED, ())


async def test_what_is_never_called_is_left_out(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """A name in DNS must not lead to the credentials of a cloud."""
    async with discovering(POOL) as registry:
        await told.saying("169.254.169.254", "a", "metadata.google.internal")
        await told.saying("169.254.169.254", "a", "metadata.google.internal")

        assert hosts(registry) == ["a"]
    [warning] = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert "leaves out 2 link-local or metadata addresses" in warning
    assert "169" not in warning


async def test_there_are_never_too_many(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """A wildcard in DNS must not fill our memory; the log says so once."""
    async with discovering(POOL) as registry:
        await told.saying(*(f"h{number:03}" for number in range(300)))
        await told.saying(*(f"h{number:03}" for number in range(300)))

        assert len(registry.servers) == watch.MOST_SERVERS == 256
    [warning] = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert "leaves out 44 servers over 256" in warning


async def test_the_log_tells_each_change_once(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Without saying where the servers are, below debug level."""
    caplog.set_level(logging.INFO, "llmproxy")
    a, b = (each.name for each in servers_at(POOL, [Place("a", 80), Place("b", 80)]))
    async with discovering(POOL):
        await told.saying("a")
        await told.saying("a", "b")
        await told.failing(LookFailed("no answer"))
        await told.failing(LookFailed("no answer"))
        await told.saying("b")

    assert [each.message for each in caplog.records] == [
        "pool has 0 servers",
        f"pool has 1 servers; new: {a}",
        f"pool has 2 servers; new: {b}",
        "pool keeps the servers it has: no answer",
        "pool can be asked again",
        f"pool has 1 servers; gone: {a}",
    ]


async def test_no_source_holds_up_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that never answers, and one that answers at once."""

    async def never(host: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return ()

    silent = addresses.AddressSource(POOL, ask=never)
    path = tmp_path / "servers"
    path.write_text("http://a")
    reading = server_file.FileSource(listing(path), read=READ)
    sources: dict[str, Source] = {"dns": silent, "file": reading}
    monkeypatch.setattr(watch, "source_of", lambda template, _: sources[template.found_by])
    registry, changed = registry_of(), asyncio.Event()
    registry.on_change.append(changed.set)
    discovery = Discovery(registry, (POOL, listing(path)), read=READ, forbidden=is_forbidden)
    running = asyncio.create_task(discovery.run())

    async with patience("the file was read"):
        await changed.wait()
    assert hosts(registry) == ["a"]
    running.cancel()
    await asyncio.wait([running])
    await registry.aclose()


async def test_a_file_is_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the template to the registry, with nothing in between replaced."""
    monkeypatch.setattr(server_file.FileSource, "pause", 0.01)
    path = tmp_path / "servers"
    path.write_text("a=http://a\nb=http://b")
    async with discovering(listing(path)) as registry:
        assert hosts(registry) == ["a", "b"]
        changed = asyncio.Event()
        registry.on_change.append(changed.set)
        (tmp_path / "other").write_text("a=http://a\nc=http://c:81")
        (tmp_path / "other").rename(path)
        async with patience("the change was noticed"):
            await changed.wait()
        assert hosts(registry) == ["a", "c"]


@pytest.mark.parametrize(
    "text", ["dns+http://a", "srv+http://_a._tcp.b", "consul+http://a/b", "file:/dev/zero"]
)
async def test_each_way_has_its_source(text: str) -> None:
    """What the grammar allows can be asked."""
    found_by = "file" if text.startswith("file") else text.partition("+")[0]
    source = watch.source_of(Upstream("a", "http", "a", 80, path="b", found_by=found_by), READ)

    assert source.pause > 0
    await source.aclose()


async def test_without_templates_there_is_nothing_to_do() -> None:
    """It ends at once."""
    registry = registry_of()
    discovery = Discovery(registry, (), read=READ, forbidden=is_forbidden)

    await discovery.first_look()
    await discovery.run()


async def test_a_template_can_be_asked_once(tmp_path: Path) -> None:
    """For `check`: what it stands for now, within the same bounds."""
    path = tmp_path / "servers"
    path.write_text("http://a")

    [found] = await servers_now(listing(path), read=READ, forbidden=is_forbidden)

    assert found.host == "a"
