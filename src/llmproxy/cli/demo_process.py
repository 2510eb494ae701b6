"""The demo upstream as a child that does not outlive us, however we end."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmproxy.demo_upstream import READY

PATIENCE = 10.0  # seconds for a Python process to come up on a busy machine
FAREWELL = 2.0  # seconds to end by itself


class DemoFailed(Exception):
    """The demo upstream did not come up."""


@contextmanager
def demo_process() -> Iterator[str]:
    """Start the demo upstream on a free port and give its URL; stop it at the end."""
    command = [sys.executable, "-m", "llmproxy", "demo-upstream", "--port", "0", "--with-parent"]
    # It ends when its stdin does, and the kernel closes that for us even if we are killed. A
    # session of its own keeps Ctrl-C from ending it while we still drain.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield _url_of(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _url_of(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    too_late = threading.Timer(PATIENCE, process.kill)
    too_late.start()
    try:
        line = process.stdout.readline().decode()
    finally:
        too_late.cancel()
    if not line.startswith(READY):
        raise DemoFailed("the demo upstream did not start")
    return line.removeprefix(READY).strip()
