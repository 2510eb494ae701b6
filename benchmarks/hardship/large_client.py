"""Clients that send bodies of 16 MiB, or are sent answers of that size.

    python -m benchmarks.hardship.large_client --port 8080 --kind bodies --at-once 4 --seconds 60

Each second all of them ask at the same moment, each on a connection of its own: that is harder to
bear than the same load spread out. Whoever is not answered within that second misses the next.
"""

import argparse
import json
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from benchmarks.hardship.large_engine import SIZE

PATIENCE = 30.0  # seconds
READ = 1024 * 1024  # bytes
ASK = (
    b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n"
)
START = b'{"model":"m","stream":true,'


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    """Return a body of 16 MiB, but for a few bytes."""
    return start + unit * ((SIZE - len(start) - len(end)) // len(unit)) + end


BODIES = {  # what takes longer and longer to read
    "a picture": filled(START + b'"messages":[{"role":"user","content":"', b"x", b'"}]}'),
    "token ids": filled(START + b'"messages":[],"prompt":[', b"123456,", b"1]}"),
    "Japanese": filled(
        START + b'"messages":[{"role":"user","content":"', "日本語".encode(), b'"}]}'
    ),
}
SMALL = b'{"model":"m"}'
REQUESTS = {
    "bodies": [(b"/v1/chat/completions", body) for body in BODIES.values()],
    "answers": [(b"/v1/embeddings", SMALL), (b"/v1/completions", START[:-1] + b"}")],
}


@dataclass(slots=True)
class Asked:
    """What became of the requests."""

    waits: list[float] = field(default_factory=list)  # seconds, of those that were answered
    failed: int = 0

    @classmethod
    def of(cls, document: Any) -> Self:
        return cls(**document)


class Client:
    """One of them."""

    def __init__(self, port: int, number: int, kind: str, seen: Asked) -> None:
        self._port = port
        self._number = number
        self._requests = REQUESTS[kind]
        self._least = SIZE // 2 if kind == "answers" else 0  # bytes of an answer
        self._seen = seen
        self._landing = bytearray(READ)

    def run(self, began: float, seconds: int) -> None:
        """Ask once in each of so many seconds."""
        for second in range(seconds):
            if (left := began + second - time.monotonic()) > 0:
                time.sleep(left)
            elif second and left < -1:
                continue
            path, body = self._requests[(self._number + second) % len(self._requests)]
            at = time.monotonic()
            if self._answered(path, body):
                self._seen.waits.append(time.monotonic() - at)
            else:
                self._seen.failed += 1

    def _answered(self, path: bytes, body: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
                sock.sendall(ASK % (path, len(body)))
                sock.sendall(body)
                size = sock.recv_into(self._landing)
                well = self._landing.startswith(b"HTTP/1.1 200 ")
                while got := sock.recv_into(self._landing):
                    size += got
                return well and size >= self._least
        except OSError:
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=list(REQUESTS), required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    args = parser.parse_args()
    seen = Asked()
    began = time.monotonic() + 0.1
    clients = [
        threading.Thread(
            target=Client(args.port, number, args.kind, seen).run, args=(began, args.seconds)
        )
        for number in range(args.at_once)
    ]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
