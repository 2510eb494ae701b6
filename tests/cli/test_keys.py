"""`llmproxy keys`: on the store, and through a proxy that runs."""

import asyncio
import getpass
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.secrets import could_be_issued, digest_of, sha256_of
from llmproxy.cli import main
from llmproxy.cli.admin_client import Address, NotAnAddress, address_of_settings, address_of_url
from llmproxy.settings import Settings
from llmproxy.store.opening import open_store
from tests.admin.office import ADMIN_KEY, Office, office
from tests.support.client import raw_client, request_bytes
from tests.support.ports import free_port
from tests.support.process import running
from tests.support.proxy import serving
from tests.support.redis_server import RedisServer
from tests.support.rig import served_here
from tests.support.tls import Authority
from tests.support.upstream import json_answer, scripted
from tests.support.wire import patience

CONFIGURED = "green:sk-green-8f3KpQz71LmX;team=sales"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLMPROXY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A real SQLite file that the commands are told of, with callers asked for keys."""
    url = f"sqlite://{tmp_path}/keys.db"
    monkeypatch.setenv("LLMPROXY_STORE", url)
    monkeypatch.setenv("LLMPROXY_AUTH", "keys")
    return url


def keys(*words: str) -> int:
    return main(["keys", *words])


async def looked_up(url: str, secret: str) -> str | None:
    """Return whose key this is, as a worker would find out."""
    store = open_store(url, patience=5)
    try:
        issued = IssuedKeys(store)
        found = await issued.with_digest(
            digest_of(sha256_of(secret.encode()), await issued.digest_key())
        )
        return found.principal.name if found is not None and found.revoked is None else None
    finally:
        await store.aclose()


async def audited(url: str) -> list[dict[str, Any]]:
    store = open_store(url, patience=5)
    try:
        return [json.loads(entry) for entry in await store.entries("audit", last=10)]
    finally:
        await store.aclose()


def test_a_new_key_stands_alone_on_stdout(store_url: str, capsys: Capture) -> None:
    """`KEY=$(llmproxy keys create --name blue)` is all that is needed; remarks go elsewhere."""
    code = keys(
        "create", "--name", "blue", "--team", "sales", "--limits", "60 req/min|8 concurrent"
    )

    said = capsys.readouterr()
    secret = said.out.removesuffix("\n")
    assert code == 0
    assert could_be_issued(secret.encode())
    assert "LLMPROXY_AUTH" not in said.err
    assert secret not in said.err
    assert "blue" in said.err
    assert asyncio.run(looked_up(store_url, secret)) == "blue"


def test_every_field_can_be_set(store_url: str, capsys: Capture) -> None:
    """By an option of the same name; the fields are those of the API."""
    options = {
        "team": "sales",
        "tier": "gold",
        "tags": "eu|web",
        "role": "viewer",
        "models": "llama-*|phi",
        "routes": "chat",
        "networks": "10.0.0.0/8|192.0.2.7",
        "limits": "60 req/min",
        "budget": "1e6 tok/month",
        "weight": "2.5",
        "priority": "7",
        "max-tokens": "1000",
        "expires": "2099-01-31",
        "note": "for the web shop",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]

    code = keys("create", "--name", "blue", *words, "--signing", "--unsigned", "--json")

    made = json.loads(capsys.readouterr().out)
    assert code == 0
    assert could_be_issued(made["key"].encode())
    assert (made["tags"], made["models"]) == (["eu", "web"], ["llama-*", "phi"])
    assert made["networks"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert (made["limits"], made["budget"]) == (
        ["60 req/min per key"],
        ["1000000 tok/month per key"],
    )
    assert (made["weight"], made["priority"], made["max_tokens"]) == (2.5, 7, 1000)
    assert made["expires"] == "2099-01-31T00:00:00Z"
    assert made["signing"] and made["unsigned"]
    assert (made["team"], made["tier"], made["role"]) == ("sales", "gold", "viewer")
    assert (made["routes"], made["note"]) == (["chat"], "for the web shop")


def test_the_list_is_a_table(
    store_url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configured keys too; a column in which nothing is said is left out; no secret."""
    monkeypatch.setenv("LLMPROXY_KEYS", CONFIGURED)
    keys("create", "--name", "blue", "--limits", "60 req/min|8 concurrent")
    secret = capsys.readouterr().out.strip()

    code = keys("list")

    said = capsys.readouterr().out
    head, green, blue = said.splitlines()
    assert code == 0
    assert head.split() == ["name", "source", "state", "team", "limits", "created"]
    assert green.split() == ["green", "configured", "active", "sales", "-", "-"]
    assert blue.split()[:4] == ["blue", "issued", "active", "-"]
    assert "60 req/min per key, 8 concurrent per key" in blue
    assert blue.index("issued") == head.index("source")
    assert secret not in said and "8f3KpQz71LmX" not in said


def test_the_list_is_json_for_programs(store_url: str, capsys: Capture) -> None:
    """The same documents as the API has."""
    keys("create", "--name", "blue")
    capsys.readouterr()

    code = keys("list", "--json")

    (blue,) = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (blue["name"], blue["state"], blue["source"]) == ("blue", "active", "issued")
    assert "key" not in blue


def test_an_empty_list_says_how_to_begin(store_url: str, capsys: Capture) -> None:
    """On stderr: a program that reads the list gets an empty one."""
    code = keys("list")

    said = capsys.readouterr()
    assert code == 0
    assert said.out == ""
    assert "llmproxy keys create --name" in said.err


def test_a_rotation_has_a_new_key(store_url: str, capsys: Capture) -> None:
    """And the one before works on for as long as it says."""
    keys("create", "--name", "blue")
    old = capsys.readouterr().out.strip()

    code = keys("rotate", "blue", "--overlap", "2h")

    said = capsys.readouterr()
    new = said.out.strip()
    assert code == 0
    assert new != old
    assert "7200 s" in said.err
    assert asyncio.run(looked_up(store_url, old)) == "blue"
    assert asyncio.run(looked_up(store_url, new)) == "blue"


def test_a_revoked_key_opens_nothing(store_url: str, capsys: Capture) -> None:
    """Nothing is on stdout: there is nothing to keep."""
    keys("create", "--name", "blue")
    secret = capsys.readouterr().out.strip()

    code = keys("revoke", "blue")

    said = capsys.readouterr()
    assert code == 0
    assert said.out == ""
    assert "revoked" in said.err
    assert asyncio.run(looked_up(store_url, secret)) is None


def test_changes_are_audited_with_the_user(store_url: str, capsys: Capture) -> None:
    """The one whom the kernel knows, and on which machine."""
    keys("create", "--name", "blue", "--team", "sales")
    os.environ["LOGNAME"] = os.environ["USER"] = "somebody-else"
    keys("revoke", "blue")
    del os.environ["LOGNAME"], os.environ["USER"]

    entries = asyncio.run(audited(store_url))

    assert [(each["action"], each["changed"]) for each in entries] == [
        ("create", {"team": "sales"}),
        ("revoke", {}),
    ]
    assert {each["actor"] for each in entries} == {f"cli:{getpass.getuser()}"}
    assert {each["actor_id"] for each in entries} == {f"cli:{os.getuid()}"}
    assert {each["address"] for each in entries} == {socket.gethostname()}


@pytest.mark.parametrize(
    ("words", "code", "cause"),
    [
        (["create", "--name", "blue"], 1, "already"),
        (["create", "--name", "green"], 1, "configured"),
        (["rotate", "nobody"], 1, "nobody"),
        (["revoke", "nobody"], 1, "nobody"),
        (["revoke", "green"], 1, "configured"),
        (["revoke", "a b"], 1, "no key"),
        (["create", "--name", "a b"], 2, "name"),
        (["create", "--name", "red", "--limits", "many"], 2, "limits"),
        (["create", "--name", "red", "--budget", "5 usd"], 2, "LLMPROXY_PRICES"),
        (["rotate", "blue", "--overlap", "soon"], 2, "overlap"),
    ],
    ids=str,
)
def test_what_cannot_be_done(
    store_url: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    cause: str,
) -> None:
    """1 for what is refused, 2 for what was asked in a wrong way; one line on stderr."""
    monkeypatch.setenv("LLMPROXY_KEYS", CONFIGURED)
    keys("create", "--name", "blue")
    capsys.readouterr()

    left = keys(*words)

    said = capsys.readouterr()
    assert left == code
    assert said.out == ""
    assert cause in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [[], ["create"], ["rotate"], ["revoke"], ["surf"], ["list", "--fast"]], ids=str
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: Capture) -> None:
    """With the usage."""
    with pytest.raises(SystemExit) as left:
        keys(*words)

    assert left.value.code == 2
    assert "usage: llmproxy" in capsys.readouterr().err


def test_a_store_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Is named, after a while in which it might have come up; no traceback, no password."""
    monkeypatch.setattr("llmproxy.cli.key_desks.READY_WITHIN", 0.2)
    monkeypatch.setenv("LLMPROXY_STORE", f"redis://:c4n4ry@127.0.0.1:{free_port()}/0")

    code = keys("list")

    said = capsys.readouterr().err
    assert code == 1
    assert "does not answer" in said
    assert "c4n4ry" not in said


def test_a_bad_configuration_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """As every command tells it."""
    monkeypatch.setenv("LLMPROXY_STORE", "mysql://h")

    assert keys("list") == 2
    assert "LLMPROXY_STORE" in capsys.readouterr().err


def test_keys_that_nobody_is_asked_for(
    store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A limit on such a key would be a comfort and nothing else, so it is said."""
    monkeypatch.setenv("LLMPROXY_AUTH", "off")

    code = keys("create", "--name", "blue", "--json")

    said = capsys.readouterr()
    assert code == 0
    assert "LLMPROXY_AUTH is off here; set it to keys" in said.err
    assert json.loads(said.out)["notice"] in said.err


def test_keys_beside_what_callers_are_asked_for(
    store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What is to be set keeps what was set."""
    monkeypatch.setenv("LLMPROXY_AUTH", "hmac")

    keys("create", "--name", "blue")

    assert "LLMPROXY_AUTH is hmac here; set it to keys+hmac" in capsys.readouterr().err


def test_in_redis_keys_are_just_the_same(
    fresh_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Issued from one machine, known on all."""
    url = f"redis+unix://{fresh_redis.socket}"
    monkeypatch.setenv("LLMPROXY_STORE", url)

    code = keys("create", "--name", "blue")

    assert code == 0
    assert asyncio.run(looked_up(url, capsys.readouterr().out.strip())) == "blue"


async def test_as_a_program_of_its_own(store_url: str) -> None:
    """A key that is made in one process is found in the next."""
    environment = {"LLMPROXY_STORE": store_url, "LLMPROXY_AUTH": "keys"}
    command = [sys.executable, "-m", "llmproxy", "keys"]
    async with running([*command, "create", "--name", "blue"], environment) as process:
        assert await process.finished() == 0
        secret = process.stdout.removesuffix("\n")
        assert "Traceback" not in process.stderr

    assert await looked_up(store_url, secret) == "blue"


@pytest.mark.parametrize("command", [["keys", "list"], ["keys", "list", "--json"], ["config"]])
def test_whoever_has_seen_enough_may_stop_reading(store_url: str, command: list[str]) -> None:
    """`llmproxy keys list | head` ends without a word."""
    keys("create", "--name", "blue")
    reading, writing = os.pipe()
    os.close(reading)

    told = subprocess.run(
        [sys.executable, "-m", "llmproxy", *command],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=30,
    )

    os.close(writing)
    assert (told.returncode, told.stderr) == (1, b"")


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_key_that_cannot_be_shown_is_said_to_be_lost(store_url: str, words: list[str]) -> None:
    """On a full disk, say: it is in the store, and nobody has seen it."""
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "llmproxy", "keys", "create", "--name", "blue", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )

    assert told.returncode == 1
    assert "the key of blue was made, but could not be shown: No space left" in told.stderr
    assert "llmproxy keys rotate blue --overlap 0" in told.stderr
    assert "Traceback" not in told.stderr


async def test_a_proxy_that_runs_takes_note(store_url: str, capsys: Capture) -> None:
    """It knows a new key at once, and a revoked one no more within 5 seconds."""
    environment = {"LLMPROXY_STORE": store_url, "LLMPROXY_AUTH": "keys"}
    async with scripted(json_answer({"data": []})) as engine:
        upstreams = {"LLMPROXY_UPSTREAMS": engine.url}
        async with serving({**environment, **upstreams}) as proxy:
            await asyncio.to_thread(keys, "create", "--name", "blue")
            secret = capsys.readouterr().out.strip()
            before = await status_for(proxy.port, secret)
            await asyncio.to_thread(keys, "revoke", "blue")
            async with patience("the revoked key was refused", 5.0):
                status = before
                while status != 401:
                    await asyncio.sleep(0.1)
                    status = await status_for(proxy.port, secret)

    assert before == 200


async def status_for(port: int, secret: str) -> int:
    """Return what somebody with this key is answered."""
    headers = [(b"authorization", b"Bearer " + secret.encode())]
    async with raw_client(port=port) as client:
        client.send(request_bytes(b"/v1/models", method=b"GET", headers=headers, body=None))
        return (await client.answer(to=b"GET")).status


@asynccontextmanager
async def proxy_at(
    monkeypatch: pytest.MonkeyPatch, *, key: str | None = ADMIN_KEY, **options: Any
) -> AsyncIterator[tuple[Office, int]]:
    """Serve the admin API, and tell the commands where it is."""
    desk = office(configured=CONFIGURED)
    async with served_here(desk.app, **options) as port:
        monkeypatch.setenv("LLMPROXY_PORT", str(port))
        if key is not None:
            monkeypatch.setenv("LLMPROXY_ADMIN_KEY", key)
        yield desk, port


async def test_without_a_shared_store_the_proxy_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What is in its memory nobody else can change."""
    async with proxy_at(monkeypatch) as (desk, _):
        made = await asyncio.to_thread(keys, "create", "--name", "blue", "--limits", "5 req/min")
        old = capsys.readouterr().out.strip()
        rotated = await asyncio.to_thread(keys, "rotate", "blue", "--overlap", "1m")
        new = capsys.readouterr().out.strip()
        listed = await asyncio.to_thread(keys, "list")
        shown = capsys.readouterr().out.splitlines()
        works = [await desk.works(old), await desk.works(new)]
        revoked = await asyncio.to_thread(keys, "revoke", "blue")
        works += [await desk.works(old), await desk.works(new)]

    assert [made, rotated, listed, revoked] == [0, 0, 0, 0]
    assert works == [True, True, False, False]
    assert [line.split()[0] for line in shown] == ["name", "green", "blue"]


@pytest.mark.parametrize(
    ("words", "code", "cause"),
    [
        (["create", "--name", "green"], 1, "configured"),
        (["rotate", "nobody"], 1, "nobody"),
        (["revoke", "a/b?c"], 1, "no key"),
        (["create", "--name", "red", "--limits", "many"], 2, "limits"),
        (["rotate", "blue", "--overlap", "soon"], 2, "overlap"),
    ],
    ids=str,
)
async def test_what_a_proxy_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], code: int, cause: str
) -> None:
    """Is told with the same words and exit codes as without one."""
    async with proxy_at(monkeypatch):
        left = await asyncio.to_thread(keys, *words)

    said = capsys.readouterr()
    assert left == code
    assert cause in said.err
    assert said.out == ""


async def test_a_proxy_with_another_admin_key(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The name of the variable is told, its value is not."""
    async with proxy_at(monkeypatch, key="c4n4ry-admin-key-1"):
        code = await asyncio.to_thread(keys, "list")

    said = capsys.readouterr().err
    assert code == 1
    assert "LLMPROXY_ADMIN_KEY" in said
    assert "c4n4ry" not in said


async def test_a_proxy_without_an_admin_api(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It says 404, and the command says why."""
    async with served_here(office(admin_key=None).app) as port:
        monkeypatch.setenv("LLMPROXY_ADMIN_KEY", ADMIN_KEY)
        code = await asyncio.to_thread(keys, "list", "--url", f"http://127.0.0.1:{port}")

    assert code == 1
    assert "runs without LLMPROXY_ADMIN_KEY" in capsys.readouterr().err


async def test_a_url_goes_before_the_store(
    store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Whoever names a proxy means that one."""
    async with proxy_at(monkeypatch) as (desk, port):
        url = f"http://127.0.0.1:{port}"
        code = await asyncio.to_thread(keys, "create", "--name", "blue", "--url", url)
        found = [key.principal.name for key in await desk.issued.all_keys()]

    assert code == 0
    assert found == ["blue"]


async def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The address is told, since it may be the wrong one."""
    port = free_port()
    monkeypatch.setenv("LLMPROXY_PORT", str(port))
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", ADMIN_KEY)

    code = await asyncio.to_thread(keys, "list")

    said = capsys.readouterr().err
    assert code == 1
    assert f"http://127.0.0.1:{port}" in said
    assert "Traceback" not in said


async def test_somebody_else_is_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What is no answer of ours is not taken for one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>", "more_body": False})

    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", ADMIN_KEY)
    async with served_here(app) as port:
        code = await asyncio.to_thread(keys, "list", "--url", f"http://127.0.0.1:{port}")

    assert code == 1
    assert "no llmproxy" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["gopher://h", "127.0.0.1:4000", "http://", "http://u:p@h", "x"])
def test_a_wrong_url_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture, url: str) -> None:
    """2, before anybody is asked."""
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", ADMIN_KEY)

    assert keys("list", "--url", url) == 2
    assert "--url must look like" in capsys.readouterr().err


def test_without_a_key_for_the_proxy(capsys: Capture) -> None:
    """2, and what to set: there are two ways."""
    code = keys("list")

    said = capsys.readouterr().err
    assert code == 2
    assert "LLMPROXY_ADMIN_KEY" in said and "LLMPROXY_STORE" in said


async def test_a_proxy_on_a_unix_socket(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    """Found by its setting and by its URL."""
    path = tmp_path / "proxy.sock"
    async with proxy_at(monkeypatch) as (_, port), forwarding(path, port):
        monkeypatch.delenv("LLMPROXY_PORT")
        by_url = await asyncio.to_thread(keys, "list", "--url", f"unix:{path}")
        monkeypatch.setenv("LLMPROXY_HOST", f"unix:{path}")
        by_setting = await asyncio.to_thread(keys, "list")

    assert (by_url, by_setting) == (0, 0)
    assert capsys.readouterr().out.count("green") == 2


@asynccontextmanager
async def forwarding(path: Path, port: int) -> AsyncIterator[None]:
    """Pass every byte between a unix socket and a port."""

    busy: set[asyncio.Event] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # whoever has what it wants leaves
            while piece := await reader.read(65536):
                writer.write(piece)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        busy.add(over)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        both = [asyncio.create_task(pump(*way)) for way in ((reader, back), (there, writer))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        writer.close()
        back.close()
        await asyncio.wait(both)
        over.set()

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield
    finally:
        server.close()
        for over in busy:
            await over.wait()


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_proxy_that_serves_tls(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, authority: Authority, trusted: bool
) -> None:
    """The one with the configured certificate, and no other, gets to see the admin key."""
    served = authority.client_file("proxy.example")  # a key and a certificate are what it takes
    configured = served if trusted else authority.client_file("other.example")
    async with proxy_at(monkeypatch, ssl_certfile=served, ssl_keyfile=served):
        monkeypatch.setenv("LLMPROXY_TLS_CERT", configured)
        monkeypatch.setenv("LLMPROXY_TLS_KEY", configured)
        code = await asyncio.to_thread(keys, "list")

    said = capsys.readouterr()
    assert code == (0 if trusted else 1)
    assert ("green" in said.out) is trusted


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", Address("http", "h", 1)),
        ("http://h", Address("http", "h", 80)),
        ("https://h/llm/", Address("https", "h", 443, "/llm")),
        ("http://[::1]:4000", Address("http", "::1", 4000)),
        ("unix:/run/x.sock", Address("unix", "/run/x.sock")),
        ("unix:///run/x.sock", Address("unix", "/run/x.sock")),
    ],
)
def test_a_url_names_a_proxy(url: str, address: Address) -> None:
    """Mounted somewhere, perhaps."""
    assert address_of_url(url) == address


@pytest.mark.parametrize("url", ["http://h:x", "http://h:99999", "http://h?a=b", "http://h#a"])
def test_what_is_no_url_of_a_proxy(url: str) -> None:
    """Is not guessed at."""
    with pytest.raises(NotAnAddress):
        address_of_url(url)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1")],
)
def test_whoever_listens_everywhere_is_asked_here(host: str, address: str) -> None:
    """0.0.0.0 is no place to go to."""
    found = address_of_settings(Settings(host=host, auth="off"))

    assert (found.scheme, found.host, found.port) == ("http", address, 4000)
