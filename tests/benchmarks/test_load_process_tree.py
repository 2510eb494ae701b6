"""Whose CPU and memory is counted."""

import os
import subprocess
import sys

import pytest

from benchmarks.load.process_tree import ProcessTree, cpu_ns, parse_pss, parse_waited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BURN_IN_A_THREAD_THAT_ENDS = """
import threading, time
def burn():
    end = time.thread_time() + 0.05
    while time.thread_time() < end: pass
thread = threading.Thread(target=burn)
thread.start(); thread.join()
print("burnt", flush=True)
input()
"""


def test_threads_that_have_ended_still_count() -> None:
    """A router that burns its CPU in short-lived threads gets no discount."""
    command = [sys.executable, "-c", BURN_IN_A_THREAD_THAT_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()

        used = cpu_ns(process.pid)
        process.communicate(b"\n")

    assert used > 50_000_000


def test_children_count_and_strangers_do_not() -> None:
    """The tree is the process, its children and theirs."""
    shell = "sleep 30 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE) as process:
        assert process.stdout
        grandchild = int(process.stdout.readline())

        tree = ProcessTree(process.pid)
        pids, used, memory = tree.pids(), tree.cpu_ns(), tree.memory()
        os.kill(grandchild, 15)

    assert pids == sorted([process.pid, grandchild])
    assert used > 0 and memory > 0


def test_nobody_uses_nothing() -> None:
    """The control run has no process in between."""
    assert (ProcessTree(0).pids(), ProcessTree(0).cpu_ns(), ProcessTree(0).memory()) == ([], 0, 0)


def test_memory_is_the_proportional_set() -> None:
    """`Pss:` in kB, and none of the lines that begin alike."""
    assert parse_pss("55d0 [rollup]\nRss: 900 kB\nPss:   469 kB\nPss_Dirty: 112 kB\n") == 469 * 1024


def test_waiting_for_a_core_is_the_second_number_of_schedstat() -> None:
    """Time on a core, time waiting for one, turns."""
    assert parse_waited("8310092 40871 12\n") == 40871
