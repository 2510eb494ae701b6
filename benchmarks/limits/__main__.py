"""`python -m benchmarks.limits`: throughput and CPU with keys and limits, in memory and in Redis.

One worker, 64 connections that ask without a pause. The subjects take turns, and ratios are taken
within a round. What the two layers cost by themselves tells `python -m benchmarks.micro limits`.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load.figures import Figure, difference, ratio, spread
from benchmarks.load.measurement import Measurement
from benchmarks.load.runner import staged
from benchmarks.load.subjects import BARE, layered, llmproxy
from benchmarks.load.workloads import CORE_STREAMS, WARM_UP, Unary

UNARY = Unary(connections=64, requests=100)
LAYERS = ("auth", "rate_limit")
START_LIMIT = 10.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    unary: dict[str, dict[int, Measurement]] = defaultdict(dict)
    streams: dict[str, dict[int, Measurement]] = defaultdict(dict)
    with redis() as url, tempfile.TemporaryDirectory() as folder:
        stores = {"memory": "memory", "redis": url, "sqlite": f"sqlite:///{folder}/store.db"}
        subjects = [BARE] + [
            llmproxy(name, {**layered(LAYERS), "LLMPROXY_STORE": store})
            for name, store in stores.items()
        ]
        for number in range(rounds):
            first = number % len(subjects)
            for subject in subjects[first:] + subjects[:first]:
                with staged(subject) as stage:
                    for workload in WARM_UP:
                        stage.measure(workload)
                    unary[subject.name][number] = believed(stage.measure(UNARY))
                    streams[subject.name][number] = believed(stage.measure(CORE_STREAMS))
    print(f"{rounds} rounds, median (least to most), {os.cpu_count()} cores; {UNARY.name}:")
    for name in unary:
        pace = {n: each.per_second for n, each in unary[name].items()}
        used = {n: each.cpu_us for n, each in unary[name].items()}
        chunk = {n: each.steady_cpu_us for n, each in streams[name].items()}
        print(f"{name:9} {spread(Figure.of(pace.values()))} requests/s")
        print(f"{'':9} {spread(Figure.of(used.values()))} us of CPU per request")
        print(f"{'':9} {spread(Figure.of(chunk.values()))} us of CPU per chunk of a stream")
    paces = {name: {n: m.per_second for n, m in of.items()} for name, of in unary.items()}
    costs = {name: {n: m.cpu_us for n, m in of.items()} for name, of in unary.items()}
    chunks = {name: {n: m.steady_cpu_us for n, m in of.items()} for name, of in streams.items()}
    print(f"redis / memory: {spread(ratio(paces['redis'], paces['memory']))} of the throughput")
    print(f"sqlite / memory: {spread(ratio(paces['sqlite'], paces['memory']))} of the throughput")
    print(f"memory - none: {spread(difference(costs['memory'], costs[BARE.name]))} us per request")
    print(f"memory - none: {spread(difference(chunks['memory'], chunks[BARE.name]))} us per chunk")


def believed(measurement: Measurement) -> Measurement:
    """Refuse a run that is void; say what makes others doubtful."""
    if measurement.problem:
        raise SystemExit(measurement.problem)
    for doubt in measurement.doubts():
        print(f"doubtful: {doubt}")
    return measurement


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Run a redis-server that keeps nothing; yield its URL."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("there is no redis-server")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        with (Path(folder) / "redis.log").open("wb") as log:
            process = subprocess.Popen([binary, *words], stdout=log, stderr=log)
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
