"""A client that asks at a fixed rate and says how long it waited, from a process of its own.

    python -m benchmarks.hardship.prober --port 8080 --rate 1000 --seconds 5 --request HEX

Each request has its moment, whether or not the one before it is answered: a server that stands
still is not spared the questions that it makes others miss. A wait begins with the request, or
with the connection if there is none to use again; how late this process was with its own requests
is told beside it. No event loop: it would cost more than what it asks.
"""

import argparse
import gc
import json
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from benchmarks.load.wire import is_complete

PATIENCE = 10.0  # seconds after the last request; whoever is not answered by then never was
SLICE = 0.001  # seconds of sleep at most: a longer one may end late

now = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Probed:
    """What the client saw; times in milliseconds."""

    waits: list[float]
    late: list[float]  # of this process with its own requests
    statuses: dict[str, int] = field(default_factory=dict)
    lost: int = 0  # requests that got no whole answer

    @classmethod
    def of(cls, document: Any) -> Self:
        return cls(**document)


class Probe:
    """All requests and their connections."""

    def __init__(self, port: int, request: bytes, *, keeps: bool) -> None:
        self._port = port
        self._request = request
        self._keeps = keeps
        self._idle: deque[socket.socket] = deque()
        self._waiting: dict[int, tuple[socket.socket, int, bytes]] = {}
        self._epoll = select.epoll()
        self._lost = 0
        self._waits: list[float] = []
        self._late: list[float] = []
        self._statuses: Counter[str] = Counter()

    def run(self, rate: float, seconds: float) -> Probed:
        for due in self._moments(rate, int(rate * seconds)):
            self._late.append((now() - due) / 1e6)
            self._ask()
        give_up = now() + int(PATIENCE * 1e9)
        while self._waiting and now() < give_up:
            self._look(0.01)
        lost = self._lost + len(self._waiting)
        return Probed(self._waits, self._late, dict(self._statuses), lost)

    def _moments(self, rate: float, count: int) -> Iterator[int]:
        """Yield when each request is due, once it is; look at answers until then."""
        started = now()
        for number in range(count):
            due = started + int(number / rate * 1e9)
            while (left := due - now()) > 0:
                self._look(min(left / 1e9, SLICE))
            yield due

    def _ask(self) -> None:
        asked_at = now()
        try:
            sock = self._idle.popleft() if self._idle else self._connected()
            sock.send(self._request)
        except OSError:
            self._lost += 1
            return
        self._waiting[sock.fileno()] = (sock, asked_at, b"")

    def _connected(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        sock.setblocking(False)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock

    def _look(self, seconds: float) -> None:
        for descriptor, _ in self._epoll.poll(seconds):
            if descriptor in self._waiting:
                self._read(descriptor)
            else:
                self._drop_idle(descriptor)

    def _read(self, descriptor: int) -> None:
        sock, asked_at, held = self._waiting.pop(descriptor)
        try:
            data = sock.recv(65_536)
        except OSError:
            data = b""
        held += data
        if is_complete(held):
            self._waits.append((now() - asked_at) / 1e6)
            self._statuses[held[9:12].decode()] += 1
            if self._keeps and b"\r\nconnection: close\r\n" not in held:
                self._idle.append(sock)
            else:
                sock.close()
        elif data:
            self._waiting[descriptor] = (sock, asked_at, held)
        else:
            self._lost += 1
            sock.close()

    def _drop_idle(self, descriptor: int) -> None:
        for sock in [each for each in self._idle if each.fileno() == descriptor]:
            self._idle.remove(sock)
            sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--request", type=bytes.fromhex, required=True, help="its bytes in hex")
    parser.add_argument("--keep", action="store_true", help="use connections again")
    args = parser.parse_args()
    gc.disable()
    probe = Probe(args.port, args.request, keeps=args.keep)
    print(json.dumps(asdict(probe.run(args.rate, args.seconds))))


if __name__ == "__main__":
    main()
