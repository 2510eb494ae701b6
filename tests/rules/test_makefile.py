"""`make` finds a Python that runs, whatever else carries the name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def command(place: Path, name: str, script: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / name).chmod(0o755)


def make_environment(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "src").mkdir()
    for tool in ("sh", "find", "touch", "mkdir"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "path" / tool).symlink_to(found)
    return subprocess.run(
        [make, ".venv/python"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_name_that_does_not_run_or_is_too_old_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "path"
    command(path, "python3", "echo 'switched off' >&2; exit 127")
    command(path, "python3.13", 'exec false "$@"')
    record = tmp_path / "called"
    command(
        path,
        "python3.12",
        f'if [ "$1" = -m ]; then echo "$@" > {record}; mkdir .venv; '
        f'else exec {sys.executable} "$@"; fi',
    )
    done = make_environment(tmp_path)
    assert done.returncode == 0, done.stderr
    assert record.read_text() == "-m venv .venv\n"


def test_without_any_python_make_says_what_to_install(tmp_path: Path) -> None:
    command(tmp_path / "path", "python3", "exit 1")
    done = make_environment(tmp_path)
    assert done.returncode != 0
    assert "No Python 3.11 or newer with venv was found" in done.stdout
    assert not (tmp_path / ".venv").exists()
