"""Installs the engines: `python -m tests.engines.setup`. What is installed already is kept."""

import os

from tests.engines.environments import SetUpFailed
from tests.engines.table import ENGINES

POLITELY = 15  # a long build leaves the machine to whoever works on it


def main() -> None:
    """Install every engine of the table, or say what is missing and fail."""
    os.nice(POLITELY)
    for engine in ENGINES:
        try:
            engine.set_up()
        except SetUpFailed as exc:
            raise SystemExit(f"The engines cannot be set up: {exc}") from exc


if __name__ == "__main__":
    main()
