"""Adds up what several processes have counted.

Each worker lays its tables open in a directory once a second and whenever it is scraped; whoever
is scraped reads those of the others. What a worker has counted stays when it ends. One that is
killed takes at most its last second with it, and nothing that was ever shown: counters never go
down.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from llmproxy import codec
from llmproxy.metrics import Metrics, State

_RETIRED = "retired.json"
_NAMES = 64  # of the last that have ended; nobody reads so slowly that more end meanwhile

log = logging.getLogger("llmproxy")


class _Retired(TypedDict):
    """The sum over all who have ended, and who they were."""

    names: list[str]
    tables: State


class Board:
    """The directory in which the workers lay their tables open.

    The files are small and live in memory where the system allows: reading and writing them
    does not keep the event loop waiting.
    """

    def __init__(self, directory: str, name: str, metrics: Metrics) -> None:
        self._directory = Path(directory)
        self._own = self._directory / f"{name}.json"
        self._metrics = metrics
        self._failed = False

    def publish(self) -> None:
        """Lay our own tables open."""
        try:
            _write(self._own, self._metrics.state())
        except OSError as exc:
            if not self._failed:
                log.warning("the other workers' /metrics leave this one out: %s", exc.strerror)
            self._failed = True
        else:
            self._failed = False

    def others(self) -> list[State]:
        """Return the tables of everybody else, those who have ended included.

        What we are about to show of our own is laid open first: the next scrape may reach
        another worker and must not fall behind.
        """
        self.publish()
        found: dict[str, State] = {}
        for path in sorted(self._directory.glob("worker-*.json")):
            if path != self._own and (state := _read(path)) is not None:
                found[path.stem] = state
        # Last of all: who ends between two reads is in one of them, or in both and named.
        retired = _read_retired(self._directory)
        for name in retired["names"]:
            found.pop(name, None)
        return [*found.values(), retired["tables"]]

    def leave(self) -> None:
        """Take our tables away, and the directory with those of the last.

        For the case that the supervisor, who would do so, is no more.
        """
        with suppress(OSError):
            self._own.unlink()
            if not any(self._directory.glob("worker-*.json")):
                for path in self._directory.iterdir():
                    path.unlink()
                self._directory.rmdir()


def retire(directory: str, name: str) -> None:
    """Keep what a worker that has ended has counted, but not its state.

    Called by the one process that sees workers end, so that the files do not pile up.
    """
    board = Path(directory)
    ended = board / f"{name}.json"
    state = _read(ended)
    if state is None:
        return
    before = _read_retired(board)
    total = Metrics()
    total.add(before["tables"], alive=False)
    total.add(state, alive=False)
    names = [*before["names"], name][-_NAMES:]
    with suppress(OSError):  # then it is kept as it is
        _write(board / _RETIRED, {"names": names, "tables": total.state()})
        ended.unlink()


def _read_retired(board: Path) -> _Retired:
    with suppress(OSError, codec.NotJson):
        retired: _Retired = codec.loads((board / _RETIRED).read_bytes())
        return retired
    return {"names": [], "tables": {}}


def _read(path: Path) -> State | None:
    with suppress(OSError, codec.NotJson):
        state: State = codec.loads(path.read_bytes())
        return state
    return None


def _write(path: Path, content: State | _Retired) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(codec.dumps(content))
    new.replace(path)
