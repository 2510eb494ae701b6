"""What a process and its children use: CPU in nanoseconds, memory in bytes. Linux only.

CPU comes from the kernel's clock of each process (clock_getcpuclockid), which counts all of its
threads, those included that have ended. Unlike the ticks of /proc/PID/stat it is exact to the
nanosecond, and unlike wall time it does not care who else uses the machine.
"""

import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """A process with all its descendants; root 0 stands for nobody and uses nothing."""

    root: int

    def pids(self) -> list[int]:
        found: list[int] = []
        waiting = [self.root] if self.root else []
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += _children(pid)
        return sorted(found)

    def cpu_ns(self) -> int:
        return sum(cpu_ns(pid) for pid in self.pids())

    def memory(self) -> int:
        """The proportional set size: pages that processes share are counted once."""
        return sum(parse_pss((PROC / str(pid) / "smaps_rollup").read_text()) for pid in self.pids())


def cpu_ns(pid: int) -> int:
    """CPU time used by all threads of one process since it began."""
    return time.clock_gettime_ns(_cpu_clock(pid))


def waited_ns(pid: int) -> int:
    """How long the first thread of a process was ready to run and got no core."""
    return parse_waited((PROC / str(pid) / "schedstat").read_text())


def parse_waited(schedstat: str) -> int:
    """The second of its three numbers: time on a core, time waiting for one, turns."""
    return int(schedstat.split()[1])


def parse_pss(smaps_rollup: str) -> int:
    """Bytes of the `Pss:` line."""
    for line in smaps_rollup.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    raise ValueError("smaps_rollup without a Pss line")


def _cpu_clock(pid: int) -> int:
    return (~pid << 3) | 2  # what clock_getcpuclockid(3) computes; Python wraps only its sibling


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in (PROC / str(pid) / "task").iterdir():
        try:
            found += map(int, (thread / "children").read_text().split())
        except FileNotFoundError:
            continue  # the thread ended while we looked
    return found
