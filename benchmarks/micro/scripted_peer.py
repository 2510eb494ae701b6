"""The smallest server that can be asked: gives the same bytes to every request.

A process of its own, so that its work does not count as ours. Knows nothing of the rest: it
is started for each benchmark, and has to be up at once.

Gets the answer on its standard input, says its port, and lives until the input is closed.
"""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INPUT = 0
END_OF_REQUEST = b"}"  # all that we send is JSON


@contextmanager
def scripted_peer(answer: bytes) -> Iterator[int]:
    """Run the peer, and tell its port."""
    command = [sys.executable, __file__, str(len(answer))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(answer)
        process.stdin.flush()
        yield int(process.stdout.readline())
        # Leaving closes its input, and waits for its end.


def serve(answer: bytes) -> None:
    """Answer one connection at a time until the input is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        client: socket.socket | None = None
        while True:
            ready, _, _ = select.select([INPUT, (client or listener).fileno()], [], [])
            if INPUT in ready:
                break
            if client is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif not (received := client.recv(65536)):
                client.close()
                client = None
            elif received.endswith(END_OF_REQUEST):
                client.sendall(answer)
        if client is not None:
            client.close()


def _read(size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        taken += os.read(INPUT, size - len(taken))
    return taken


if __name__ == "__main__":
    serve(_read(int(sys.argv[1])))
