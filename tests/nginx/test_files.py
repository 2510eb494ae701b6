"""The shipped files are accepted by nginx, and agree with each other and with README.md."""

import re
from pathlib import Path

import pytest

from llmproxy.settings import Settings
from tests.nginx.front import SHIPPED, Certificates, Front, render_plain, render_public

UPSTREAM = "127.0.0.1:4000"
MIB = 1024 * 1024
FILES = sorted(path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.conf"))


async def said_by_check(front: Front) -> str:
    """Let nginx test the files of `front`; return what it had to say beyond "ok"."""
    code, said = await front.run("-t")
    assert code == 0, said
    return "\n".join(line for line in said.splitlines() if "[notice]" not in line)


def optional_lines(name: str) -> list[str]:
    """The directives of a shipped file that can be switched on."""
    return re.findall(r"^ +#(\S.*)$", (SHIPPED / name).read_text(), re.MULTILINE)


async def test_nginx_accepts_the_public_front(root: Path, certificates: Certificates) -> None:
    """`nginx -t` has nothing to say about llmproxy.conf, warnings included."""
    said = await said_by_check(render_public(root, UPSTREAM, certificates))

    assert "syntax is ok" in said
    # Newer versions name the old form of HTTP/2 here, as the file says.
    assert not [line for line in said.splitlines() if "[" in line and "http2" not in line]


async def test_nginx_accepts_the_plain_front(root: Path) -> None:
    """`nginx -t` has nothing to say about plain.conf, warnings included."""
    said = await said_by_check(render_plain(root, UPSTREAM))

    assert "syntax is ok" in said
    assert "[" not in said


async def test_everything_that_can_be_switched_on_is_accepted(
    root: Path, certificates: Certificates
) -> None:
    """No commented line is a misspelt one."""
    optional = optional_lines("llmproxy.conf")
    front = render_public(root, UPSTREAM, certificates, switch_on=optional)
    (root / "clients-crl.pem").write_bytes(certificates.revocation_list())

    await said_by_check(front)

    assert "ssl_verify_client on;" in optional
    assert "set_real_ip_from 10.0.0.0/8;" in optional
    assert optional_lines("plain.conf") == ["server 127.0.0.1:4000;"]


@pytest.mark.parametrize("name", FILES)
def test_the_readme_names_each_file(name: str) -> None:
    """Nothing is shipped that an operator is not told about."""
    assert Path(name).name in (SHIPPED / "README.md").read_text()


def figures(name: str, directive: str) -> list[int]:
    """The values of a directive in a shipped file, in seconds or MiB, in their order."""
    text = (SHIPPED / name).read_text()
    return [int(n) for n in re.findall(rf"^ *{directive} (\d+)[sm];", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["llmproxy.conf", "plain.conf"])
def test_nginx_lets_go_of_idle_connections_first(name: str) -> None:
    """nginx keeps an idle connection to llmproxy for less long than llmproxy does."""
    to_llmproxy, to_callers = figures(name, "keepalive_timeout")

    assert to_llmproxy < default("timeout_keepalive")
    assert to_callers == 75


def test_llmproxys_clocks_run_out_first() -> None:
    """nginx waits for longer than llmproxy does for an engine and for a caller's body."""
    queue = 30  # seconds

    (for_an_answer,) = figures("snippets/llmproxy-pass.conf", "proxy_read_timeout")
    (for_a_body,) = figures("snippets/llmproxy-pass.conf", "proxy_send_timeout")

    assert for_an_answer > queue + 2 * default("timeout_answer")
    assert for_a_body > default("timeout_body")


def test_the_body_limits_are_llmproxys() -> None:
    """What nginx lets through is what llmproxy takes, as long as both are left as they come."""
    json, upload = default("max_body") / MIB, default("max_upload") / MIB

    assert figures("llmproxy.conf", "client_max_body_size") == [json, upload]
    assert figures("plain.conf", "client_max_body_size") == [upload]


def default(setting: str) -> float:
    """The default of one of llmproxy's settings, in seconds or bytes."""
    value: float = Settings.model_fields[setting].default
    return value
