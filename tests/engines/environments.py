"""Python environments for engines: one each, away from the one that runs the tests."""

import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.engines.engine import ROOT

ENVIRONMENTS = ROOT / ".engines"
LAST_LINES = 25  # of the installer's log, shown when it failed


class SetUpFailed(Exception):
    """An engine cannot be installed; the message says what is missing."""


def python_of(name: str) -> Path:
    """Return the interpreter of an environment that has been set up."""
    python = _python(name)
    if not _stamp(name).exists():
        raise SetUpFailed(f"{name} is not installed: run `python -m tests.engines.setup` first")
    return python


def install(name: str, requirements: Sequence[str], *, tools: Mapping[str, Sequence[str]]) -> None:
    """Make an environment with `requirements`, unless it has been made before.

    `tools` are the programs that the build needs: what to tell the user that is missing, and
    the commands of which one must exist.
    """
    wanted = "\n".join([sys.version, *requirements])
    stamp = _stamp(name)
    if stamp.exists() and stamp.read_text() == wanted:
        return

    missing = [tool for tool, commands in tools.items() if not any(map(shutil.which, commands))]
    if missing:
        raise SetUpFailed(
            f"{name} is built from source, and this machine lacks {', '.join(missing)}. "
            "Install what is missing with the system's package manager and try again."
        )

    log = ENVIRONMENTS / f"{name}.log"
    ENVIRONMENTS.mkdir(exist_ok=True)
    sys.stderr.write(f"{name}: installing {', '.join(requirements)}, which may take minutes; ")
    sys.stderr.write(f"the log is {log.relative_to(ROOT)}\n")
    # An environment that was left half made is begun anew: nothing in it can be trusted.
    try:
        venv.create(ENVIRONMENTS / name, clear=True, with_pip=True)
    except subprocess.CalledProcessError as exc:
        raise SetUpFailed(
            f"no environment could be made for {name}: does this Python lack venv or ensurepip "
            f"(on Debian and Ubuntu, the package python3-venv)? {exc}"
        ) from exc
    with log.open("wb") as output:
        done = subprocess.run(
            [_python(name), "-m", "pip", "install", "--verbose", *requirements],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise SetUpFailed(f"pip could not install {name}; the end of its log is\n\n{end}\n")
    stamp.write_text(wanted)


def _python(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"


def _stamp(name: str) -> Path:
    """The file that is written last: with it, an environment is complete."""
    return ENVIRONMENTS / name / "installed"
