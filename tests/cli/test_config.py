"""`llmproxy config`: what is in effect, and why."""

import json
from pathlib import Path

import pytest

from llmproxy.cli import main
from llmproxy.settings.variables import IN_THIS_VERSION, PREFIX


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "llmproxy.toml"
    path.write_text("timeout_idle = 30\nmax_body = '1MiB'\n")
    monkeypatch.setenv("LLMPROXY_CONFIG", str(path))
    monkeypatch.setenv("LLMPROXY_UPSTREAMS", "big=http://gpu1:8000;key=c4n4ry")
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", "c4n4ry")
    monkeypatch.setenv("LLMPROXY_TRUSTED_PROXIES", "10.0.0.0/8,unix")


@pytest.mark.usefixtures("environment")
def test_every_variable_has_a_value_and_a_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As JSON for programs."""
    code = main(["config", "--json"])

    rows = {row["variable"]: row for row in json.loads(capsys.readouterr().out)}
    assert code == 0
    assert rows.keys() == {PREFIX + name for name in IN_THIS_VERSION}
    path = str(tmp_path / "llmproxy.toml")
    found = {name: (row["value"], row["source"]) for name, row in rows.items()}
    assert found["LLMPROXY_TIMEOUT_IDLE"] == ("30", f"file {path}")
    assert found["LLMPROXY_MAX_BODY"] == ("1MiB", f"file {path}")
    assert found["LLMPROXY_MAX_UPLOAD"] == ("512MiB", "default")
    assert found["LLMPROXY_TRUSTED_PROXIES"] == ("10.0.0.0/8,unix", "environment")
    assert found["LLMPROXY_ADMIN_KEY"] == ("***", "environment")
    assert found["LLMPROXY_AUTH"] == ("off", "default")
    assert found["LLMPROXY_CONFIG"] == (path, "environment")
    assert found["LLMPROXY_UPSTREAMS"] == ("big=http://gpu1:8000/v1;key=***", "environment")


@pytest.mark.usefixtures("environment")
def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, in columns, secrets masked."""
    code = main(["config"])

    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert code == 0
    assert head.split() == ["variable", "value", "from"]
    assert len(lines) == len(IN_THIS_VERSION)
    assert len({line.index(line.split()[1]) for line in lines if len(line.split()) == 3}) == 1
    assert "c4n4ry" not in said.out + said.err


def test_warnings_stand_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that what is on stdout can be read by a program."""
    monkeypatch.setenv("LLMPROXY_SERVICE_HOST", "10.0.0.1")

    code = main(["config", "--json"])

    said = capsys.readouterr()
    assert code == 0
    assert json.loads(said.out)
    assert "LLMPROXY_SERVICE_HOST" in said.err
