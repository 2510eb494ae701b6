"""A worker as its supervisor sees it: a process, and a line to it.

The lifeline is a pair of sockets. The worker says on it that it serves; the supervisor says on
it that running answers must end now; and its end tells either that the other one is gone.
"""

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

SERVES = b"+"  # from the worker
END_NOW = b"!"  # to the worker

START_LIMIT = 30.0  # seconds for a worker to come up
GRACE = 5.0  # seconds on top of the drain time before a worker is killed
NEVER = float("inf")


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One worker process."""

    name: str
    index: int  # which of the workers it is, from 0; whoever comes in its place is the same
    process: "subprocess.Popen[bytes]"
    lifeline: socket.socket
    started_at: float
    drain_timeout: float
    replaces: "WorkerProcess | None"
    kill_at: float
    ready: bool = False
    leaving: bool = False

    def is_up(self) -> bool:
        """Tell whether it has said that it serves."""
        if not self.ready:
            try:
                self.ready = self.lifeline.recv(1) == SERVES
            except OSError:
                return False  # nothing yet, or nothing any more
            if self.ready:
                self.kill_at = NEVER
        return self.ready

    def drain(self, now: float) -> None:
        """Ask it to finish what it has begun and to end. One that does so already is left alone."""
        if self.leaving:
            return
        self.leaving = True
        self.kill_at = now + self.drain_timeout + GRACE
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end_now(self, now: float) -> None:
        """Have it end what it has begun, too."""
        self.drain(now)
        self.kill_at = min(self.kill_at, now + GRACE)
        with suppress(OSError):  # it has ended by itself
            self.lifeline.send(END_NOW)

    def kill(self) -> None:
        """Wait for it no longer."""
        self.kill_at = NEVER
        self.process.kill()


def start(
    name: str,
    *,
    index: int,
    listening: socket.socket,
    board: str,
    drain_timeout: float,
    replaces: WorkerProcess | None,
    now: float,
) -> WorkerProcess:
    """Start a worker; raises OSError when this machine has no room for one more process."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    command = [sys.executable, "-m", "llmproxy.server.worker"]
    command += ["--listen", str(listening.fileno()), "--lifeline", str(theirs.fileno())]
    command += ["--board", board, "--name", name, "--index", str(index)]
    with theirs:
        try:
            # A session of its own: Ctrl-C in a terminal is for the supervisor to pass on.
            process = subprocess.Popen(
                command,
                pass_fds=[listening.fileno(), theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return WorkerProcess(
        name, index, process, ours, now, drain_timeout, replaces, now + START_LIMIT
    )
