"""What the tests need to know of a model server, whichever it is.

A new engine is a new file that says so, and one more line in `table.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model server that can be installed, started and asked.

    It is to be started in a way that it works on one request at a time: the next one must wait.
    Only then can a test see from outside whether the engine has stopped a generation. It loads
    a model that never ends an answer by itself, so that answers are as long as asked for.
    """

    name: str
    set_up: Callable[[], None]  # installs it; does nothing when it is installed
    command: Callable[[Path, int], list[str]]  # from a folder for its files, and a port
    chat_model: str
    embedding_model: str
    context_length: int  # tokens
    endless: int  # tokens of an answer that takes much longer than a test may last
