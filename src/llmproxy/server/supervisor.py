"""Keeps the workers running: starts them, replaces them, and sees them off.

It holds the listening socket and does nothing with it, so that no worker which comes or goes
takes a waiting connection along. It has no event loop, for it has nothing to do but wait for
signals and children.
"""

import logging
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmproxy.metrics_board import retire
from llmproxy.server.worker_process import WorkerProcess, start

TICK = 0.05  # seconds between two looks while something is expected, ...
REST = 1.0  # ... and while nothing is
FIRST_PAUSE = 0.25  # seconds before a dead worker is replaced; doubles while they keep dying
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 30.0  # seconds of life that make up for earlier deaths
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
MEMORY = "/dev/shm"  # where writing a file never waits for a disk; some systems have none

log = logging.getLogger("llmproxy")


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """The parent of the workers."""

    listening: socket.socket
    count: int
    drain_timeout: float
    on_ready: Callable[[], None]
    reread: Callable[[], float | None]
    """Reads the configuration again: the drain time of the next workers, None for faults."""

    workers: list[WorkerProcess] = field(default_factory=list)
    _replacing: bool = False
    _to_replace: list[WorkerProcess] = field(default_factory=list)
    _due: list[float] = field(default_factory=list)  # when dead workers come back
    _deaths: int = 0  # in a row
    _names: int = 0
    _board: str = ""
    _stopping: bool = False
    _announced: bool = False
    _exit_code: int = 0

    def run(self) -> int:
        """Supervise until a signal; return the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        with board_directory() as self._board:
            for _ in range(self.count):
                if not self._stopping:
                    self._start(time.monotonic())
            while self.workers or (self._due and not self._stopping):
                self._step()
        return self._exit_code

    def _step(self) -> None:
        expected = self._due or any(not worker.ready for worker in self.workers)
        told = signal.sigtimedwait(SIGNALS, TICK if expected else REST)
        number = told.si_signo if told is not None else 0
        now = time.monotonic()
        if number in (signal.SIGTERM, signal.SIGINT):
            self._obey(now)
        elif number == signal.SIGHUP and not self._stopping:
            self._renew()
        for worker in list(self.workers):
            self._look_after(worker, now)
        if self._stopping:
            return
        while self._due and self._due[0] <= now:
            self._due.pop(0)
            self._start(now)
        self._replace_next(now)
        if not self._announced and all(worker.ready for worker in self.workers):
            self._announced = True
            self.on_ready()

    # One worker

    def _start(self, now: float, replaces: WorkerProcess | None = None) -> None:
        self._names += 1
        name = f"worker-{self._names}"
        try:
            worker = start(
                name,
                index=replaces.index if replaces is not None else self._free_index(),
                listening=self.listening,
                board=self._board,
                drain_timeout=self.drain_timeout,
                replaces=replaces,
                now=now,
            )
        except OSError as exc:
            log.error("%s cannot be started: %s", name, exc.strerror or exc)
            self._make_up_for(now, code=1, lived=0.0, served=False, replaces=replaces)
        else:
            self.workers.append(worker)

    def _free_index(self) -> int:
        """Return which of the workers is missing: each has its part of what all may do together."""
        taken = {worker.index for worker in self.workers if not worker.leaving}
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def _look_after(self, worker: WorkerProcess, now: float) -> None:
        code = worker.process.poll()
        if code is not None:
            self._bury(worker, code, now)
        elif now > worker.kill_at:
            what = "end" if worker.leaving else "come up"
            log.error("%s did not %s in time and is killed", worker.name, what)
            worker.kill()
        elif worker.is_up() and worker.replaces is not None and not worker.leaving:
            worker.replaces.drain(now)
            worker.replaces = None

    def _bury(self, worker: WorkerProcess, code: int, now: float) -> None:
        self.workers.remove(worker)
        worker.lifeline.close()
        retire(self._board, worker.name)
        if worker in self._to_replace:
            self._to_replace.remove(worker)
        successors = [each for each in self.workers if each.replaces is worker]
        for successor in successors:
            successor.replaces = None
        if worker.leaving or self._stopping:
            return
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        log.error("%s ended %s%s", worker.name, how, "" if worker.ready else " before it served")
        if not successors:
            self._make_up_for(
                now,
                code=code,
                lived=now - worker.started_at,
                served=worker.ready,
                replaces=worker.replaces,
            )

    def _make_up_for(
        self, now: float, *, code: int, lived: float, served: bool, replaces: WorkerProcess | None
    ) -> None:
        """Decide what follows from a worker that is missing."""
        if replaces is not None:
            log.error("the old workers stay")
            self._to_replace.clear()
            self._replacing = False
        elif not served and not self._announced:
            self._exit_code = code if code > 0 else 1
            self._drain(now)
        else:
            self._deaths = 0 if lived > HEALTHY_AFTER else self._deaths + 1
            pause = pause_after(self._deaths, luck=random.random())
            log.warning("a worker is started in %.1f s", pause)
            self._due.append(now + pause)
            self._due.sort()

    # All workers

    def _obey(self, now: float) -> None:
        """Drain when told for the first time, end at once when told again."""
        if self._stopping:
            for worker in self.workers:
                worker.end_now(now)
            return
        log.warning(
            "draining: running answers may finish within %g s; a second signal ends them",
            self.drain_timeout,
        )
        self._drain(now)

    def _drain(self, now: float) -> None:
        self._stopping = True
        self._due.clear()
        # Nobody will take a connection from now on: better refused than kept waiting.
        self.listening.close()
        for worker in self.workers:
            worker.drain(now)

    def _renew(self) -> None:
        """Replace every worker by one that reads the configuration anew."""
        drain_timeout = self.reread()
        if drain_timeout is None:
            log.error("the configuration has faults: the workers stay as they are")
            return
        log.warning("replacing the workers one by one")
        self.drain_timeout = drain_timeout
        self._replacing = True
        replaced = {worker.replaces for worker in self.workers}
        self._to_replace = [
            worker for worker in self.workers if not worker.leaving and worker not in replaced
        ]

    def _replace_next(self, now: float) -> None:
        """Start the next replacement once the last one serves and its predecessor drains."""
        if not self._replacing or any(worker.replaces for worker in self.workers):
            return
        if self._to_replace:
            self._start(now, replaces=self._to_replace.pop(0))
        else:
            self._replacing = False
            log.warning("the workers are replaced")


def pause_after(deaths: int, *, luck: float) -> float:
    """Return the seconds before a worker is started again, after so many early deaths in a row.

    `luck` is from 0 to 1, so that many that died together do not come back together.
    """
    doublings = min(max(0, deaths - 1), 16)  # the longest pause is reached long before
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**doublings) * (0.5 + luck / 2)


def board_directory() -> "tempfile.TemporaryDirectory[str]":
    """Make the directory in which the workers lay their counters open."""
    try:
        return tempfile.TemporaryDirectory(prefix="llmproxy-", dir=MEMORY)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="llmproxy-")
