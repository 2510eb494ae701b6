"""Many clients of one process, which all leave at once when it is told to.

    python -m benchmarks.hardship.leavers --port 8080 --count 500 --request 474554...

It prints a line once all have asked, and reads whatever they are answered. On SIGTERM it closes
one socket after the other and prints when it did, by the clock that all processes share; on SIGKILL
the kernel closes them. Each says in its request which one it is, in the place of four `#`.
"""

import argparse
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn

READ = 65_536
NAME = b"####"  # as long as a name is


class Leave(Exception):
    """It is time."""


def ask(port: int, count: int, request: bytes) -> list[socket.socket]:
    """Connect them all and let each ask."""
    clients = []
    for number in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(request.replace(NAME, name_of(number)))
        client.setblocking(False)
        clients.append(client)
    return clients


def name_of(number: int) -> bytes:
    """Return what a client calls itself."""
    return b"%0*d" % (len(NAME), number)


def read(clients: list[socket.socket]) -> NoReturn:
    """Read what comes, so that no socket is closed with something unread in it."""
    poll = select.epoll()
    by_number = {client.fileno(): client for client in clients}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if not by_number[number].recv(READ):
                sys.exit("a client was left alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--request", type=bytes.fromhex, required=True)
    args = parser.parse_args()
    clients = ask(args.port, args.count, args.request)
    signal.signal(signal.SIGTERM, _leave)
    print("asked", flush=True)
    try:
        read(clients)
    except Leave:
        left_at = []
        for client in clients:
            left_at.append(time.monotonic())
            client.close()
        print(*left_at, flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Leave


if __name__ == "__main__":
    main()
