"""Where peers live: a virtual environment each, under `.bench/`, made on first use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"
INSTALL_LIMIT = 900  # seconds


class UnavailableError(Exception):
    """This subject cannot take part; the message says why and, if it can, what to do."""


def installed(name: str, requirement: str) -> Path:
    """The Python of an environment that holds exactly `requirement`, installed if need be."""
    folder = HOME / name
    python, receipt = folder / "bin" / "python", folder / "installed.txt"
    if python.exists() and receipt.exists() and receipt.read_text() == requirement:
        return python
    print(f"installing {requirement} into {folder.relative_to(ROOT)}", file=sys.stderr)
    HOME.mkdir(exist_ok=True)
    try:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", requirement],
        ):
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT
            )
    except subprocess.CalledProcessError as exc:
        last = (exc.stderr or exc.stdout).strip().splitlines()[-1:] or ["no output"]
        raise UnavailableError(f"{requirement} cannot be installed: {last[0]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnavailableError(f"{requirement} cannot be installed: {exc}") from exc
    receipt.write_text(requirement)
    return python


def program(name: str, package: str) -> str:
    """The path of a program of the system; servers often lie outside a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    if not found:
        raise UnavailableError(f"{name} is not installed (Debian: apt install {package})")
    return found


def first_line(*command: str) -> str:
    """What a program says about its version, wherever it says it."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).strip().partition("\n")[0]
