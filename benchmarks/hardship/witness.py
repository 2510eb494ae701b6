"""An engine that does as little as one can, and notes when each of its connections was closed.

It runs in a thread of its own, on the bare readiness of sockets: what it has to do for one
connection would otherwise be the wait of the next.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
TOKEN = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
BACKLOG = 4096
FEW = 10  # connections that fill the shortest one
READ = 65_536
PACE = 0.1  # seconds between two tokens of a stream
SLICES = 10  # the streams take turns within it
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Silence(StrEnum):
    """How far the engine goes with an answer."""

    HEAD = "before the head"
    TOKEN = "after the head"
    GAP = "in a silent gap"
    NEVER = "between tokens"


class Witness:
    """The connections that were asked on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._open: dict[int, socket.socket] = {}  # which the other side has not closed,
        self._left: list[socket.socket] = []  # and which it has
        self._asked: dict[int, tuple[bytes, socket.socket]] = {}  # of those that are open, by whom
        self._silence = Silence.HEAD
        self._slice = 0
        self._stopped = False
        self.closed_at: dict[bytes, float] = {}  # by the client's name

    @property
    def asked(self) -> int:
        """Connections on which an answer is awaited."""
        return len(self._asked)

    def begin(self, silence: Silence) -> None:
        """Answer from now on so far, and forget what was seen."""
        self._silence = silence
        self.closed_at = {}

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        due = time.monotonic()
        while not self._stopped:
            ready = self._poll.poll(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            alive = []
            for number, what in ready:
                if not what & GONE:
                    alive.append(number)
                elif (connection := self._open.pop(number, None)) is not None:
                    self._left.append(connection)
                    if (asked := self._asked.pop(number, None)) is not None:
                        self.closed_at[asked[0]] = now
            for number in alive:
                self._hear(number)
            if time.monotonic() >= due:
                due = time.monotonic() + PACE / SLICES
                self._go_on()

    def close(self) -> None:
        for each in (*self._open.values(), *self._left, self._listener):
            each.close()
        self._poll.close()

    def _hear(self, number: int) -> None:
        if number == self._listener.fileno():
            with contextlib.suppress(BlockingIOError):
                while True:
                    made, _ = self._listener.accept()
                    made.setblocking(False)
                    self._open[made.fileno()] = made
                    self._poll.register(made, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        elif (request := self._open[number].recv(READ)).startswith(b"POST"):
            name = request.partition(b'"user":"')[2].partition(b'"')[0]
            self._begin(number, name, self._open[number])

    def _begin(self, number: int, name: bytes, connection: socket.socket) -> None:
        self._asked[number] = name, connection
        if self._silence is Silence.TOKEN:
            connection.send(HEAD)
        elif self._silence is not Silence.HEAD:
            connection.send(HEAD + TOKEN)

    def _go_on(self) -> None:
        """Send a token on some of the streams, and let go of what was closed."""
        if not self._asked:  # nobody is kept waiting by it
            while self._left:
                self._left.pop().close()
        self._slice = (self._slice + 1) % SLICES
        if self._silence is Silence.NEVER:
            for _, connection in list(self._asked.values())[self._slice :: SLICES]:
                with contextlib.suppress(OSError):
                    connection.send(TOKEN)


@contextmanager
def witnessing() -> Iterator[Witness]:
    """Run one."""
    witness = Witness()
    thread = threading.Thread(target=witness.run, name="witness")
    thread.start()
    try:
        yield witness
    finally:
        witness.stop()
        thread.join()
        witness.close()


@contextmanager
def deafness() -> Iterator[int]:
    """Listen on a port, and take nobody: what the kernel accepts by itself is used up."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        port: int = listener.getsockname()[1]
        for _ in range(FEW):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port
