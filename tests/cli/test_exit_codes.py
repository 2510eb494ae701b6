"""What each command answers when it cannot do what it should."""

import resource
import sys
from pathlib import Path

import pytest

from llmproxy.cli import LATER, main
from llmproxy.routing.discovery import local
from tests.support.process import running

PYTHON_LLMPROXY = [sys.executable, "-m", "llmproxy"]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLMPROXY_UPSTREAMS", "LLMPROXY_CONFIG", "LLMPROXY_PORT"):
        monkeypatch.delenv(name, raising=False)
    # Whatever runs on this machine is not looked for.
    monkeypatch.setattr(local, "PLACES", ())


@pytest.mark.parametrize("command", [[], ["serve"], ["serve", "--demo"], ["check"], ["config"]])
def test_every_fault_is_told_before_anything_is_started(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, one line each, with exit code 2; nothing on stdout."""
    monkeypatch.setenv("LLMPROXY_PORT", "30x")
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", "c4n4ry with blanks")
    monkeypatch.setenv("LLMPROXY_UPSTREAMZ", "http://a;key=c4n4ry")

    code = main(command)

    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert "3 faults" in said.err
    lines = [line.strip() for line in said.err.splitlines()]
    for name in ("LLMPROXY_PORT=", "LLMPROXY_ADMIN_KEY=", "LLMPROXY_UPSTREAMZ="):
        assert sum(line.startswith(name) for line in lines) == 1
    assert "c4n4ry" not in said.err


@pytest.mark.parametrize("command", [[], ["serve"], ["check"]])
def test_without_an_upstream_it_says_what_to_set(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With an example that can be pasted."""
    code = main(command)

    said = capsys.readouterr().err
    assert code == 2
    assert "LLMPROXY_UPSTREAMS=http://127.0.0.1:8000 llmproxy serve" in said
    assert "llmproxy serve --demo" in said


@pytest.mark.parametrize("command", LATER)
def test_commands_that_are_not_built_yet_say_so(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever follows their name."""
    code = main([command, "--json", "create"])

    assert code == 2
    assert f"{command}: not in this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["surf"], ["serve", "--fast"], ["--fast"], ["demo-upstream", "--port", "x"]]
)
def test_a_wrong_command_line_is_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2 and the usage."""
    with pytest.raises(SystemExit) as left:
        main(command)

    assert left.value.code == 2
    assert "usage: llmproxy" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Without starting anything."""
    with pytest.raises(SystemExit) as left:
        main(["--version"])

    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("llmproxy 0.")


@pytest.mark.parametrize("command", [[], ["serve"], ["check"]])
def test_a_layer_that_is_none_is_a_fault_like_others(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is told before a server or a worker is started, and not by a traceback."""
    (tmp_path / "broken_from_the_start.py").write_text(
        "class Layer:\n    def __init__(self, app): raise ValueError('c4n4ry')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMPROXY_UPSTREAMS", "http://127.0.0.1:9")
    monkeypatch.setenv("LLMPROXY_MIDDLEWARE", "auth,broken_from_the_start:Layer")
    monkeypatch.setenv("LLMPROXY_PORT", "30x")

    code = main(command)

    said = capsys.readouterr()
    assert code == 2
    assert "2 faults" in said.err
    assert "LLMPROXY_MIDDLEWARE='broken_from_the_start:Layer': cannot be made" in said.err
    assert "c4n4ry" not in said.err


async def test_a_bad_configuration_ends_the_start_at_once() -> None:
    """Within a second, in a process of its own: of its time, not of that in which others ran."""
    before = spent_by_children()
    async with running(PYTHON_LLMPROXY, {"LLMPROXY_PORT": "30x"}) as process:
        code = await process.finished()
    spent = spent_by_children() - before

    assert code == 2
    assert "LLMPROXY_PORT='30x'" in process.stderr
    assert "Traceback" not in process.stderr
    assert 0 < spent < 2.0  # a busy machine has twice the time


def spent_by_children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


async def test_a_bad_configuration_loads_no_server() -> None:
    """What makes the start slow is not even imported."""
    program = (
        "import sys; from llmproxy.cli import main; code = main([])\n"
        "heavy = {'uvicorn', 'httpx', 'starlette', 'prometheus_client', 'httptools'}\n"
        "print(code, sorted(heavy & sys.modules.keys()))"
    )
    async with running([sys.executable, "-c", program], {"LLMPROXY_PORT": "30x"}) as process:
        await process.finished()

    assert process.stdout == "2 []\n"
