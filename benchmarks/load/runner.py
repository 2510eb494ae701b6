"""Starts everything, in turn, and never two subjects at a time.

In each round every subject runs once, the order rotated from round to round: what the machine
does to one of them it does to all, and ratios are taken within a round. Model server, subject
and load generator are new processes in every turn.
"""

import contextlib
import http.client
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load import wire
from benchmarks.load.campaign import (
    CORE_STAGE,
    FIRST_CONTROL,
    GROWTH_STAGE,
    LAST_CONTROL,
    Campaign,
    Turn,
)
from benchmarks.load.environments import ROOT, UnavailableError
from benchmarks.load.measurement import Measurement
from benchmarks.load.process_tree import ProcessTree
from benchmarks.load.subjects import (
    DIRECT,
    SINGLE_LAYERS,
    Place,
    Subject,
    inherited_environ,
    layered,
    llmproxy,
)
from benchmarks.load.workloads import CORE, GROWTH, WARM_UP, Streams, Workload

START_LIMIT = 90.0  # seconds until a subject must answer; LiteLLM takes its time
STOP_LIMIT = 5.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A model server with one subject in front of it, both up."""

    port: int
    subject_pid: int
    server_pid: int

    def measure(self, workload: Workload, *, weigh: bool = False) -> Measurement:
        """Let a load generator of its own do one workload."""
        command = [
            *(sys.executable, "-m", "benchmarks.load.load_generator"),
            *("--port", str(self.port), "--workload", json.dumps(asdict(workload))),
            *("--subject-pid", str(self.subject_pid), "--server-pid", str(self.server_pid)),
            *(["--weigh"] if weigh else []),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            return Measurement(units=workload.units, problem=f"load generator: {last[0]}")
        return Measurement.from_json(json.loads(done.stdout))


@contextlib.contextmanager
def staged(subject: Subject) -> Iterator[Stage]:
    """Start a model server and the subject; stop both, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-bench-") as folder:
        place = Path(folder)
        server = [sys.executable, "-m", "benchmarks.load.model_server"]
        with _process(server, {}, place / "server.log") as model_server:
            server_port = _printed_port(model_server, place / "server.log")
            if subject.launch is None:
                yield Stage(server_port, 0, model_server.pid)
                return
            port, spare = _free_ports()
            launch = subject.launch(Place(port, spare, server_port, place))
            log = place / "subject.log"
            with _process(launch.argv, launch.environ, log) as process:
                _wait_for_answer(process, port, log)
                yield Stage(port, process.pid, model_server.pid)


def take_turn(subject: Subject, stage_name: str, round_number: int, *, most: int = 0) -> Turn:
    """One subject through one stage; `most` caps the streams of the growth stage."""
    growing = stage_name == GROWTH_STAGE
    results: dict[str, Measurement] = {}
    with staged(subject) as stage:
        for workload in WARM_UP:
            stage.measure(workload)
        memory_before = ProcessTree(stage.subject_pid).memory()
        for workload in GROWTH if growing else CORE:
            if growing and isinstance(workload, Streams) and workload.streams > most:
                continue
            results[workload.name] = measured = stage.measure(workload, weigh=growing)
            if growing and measured.problem:
                break  # who fails with some streams need not be asked to carry more
    return Turn(subject.name, stage_name, round_number, memory_before, results)


def run(
    subjects: Sequence[Subject], *, rounds: int, growth_rounds: int, with_layers: bool, command: str
) -> Campaign:
    """The whole benchmark: rehearsal, control, rounds, control."""
    campaign = Campaign(machine=describe_machine(), command=command)
    most = _raise_descriptor_limit(campaign)
    cast = _rehearse([DIRECT, *subjects], campaign)
    if with_layers:
        layers = [name for name, s in SINGLE_LAYERS.items() if s in _rehearse([s], campaign)]
        cast += [SINGLE_LAYERS[name] for name in layers]
        if len(layers) > 1:
            every = llmproxy("llmproxy+all", layered(layers))
            cast += _rehearse([every], campaign)
            campaign.notes.append(f"llmproxy+all stands for {', '.join(layers)}")

    yardsticks = [loopback_us()]
    _tell(campaign, take_turn(DIRECT, FIRST_CONTROL, 0))
    for stage, times in ((CORE_STAGE, rounds), (GROWTH_STAGE, growth_rounds)):
        for number in range(times):
            start = number % len(cast)
            for subject in cast[start:] + cast[:start]:
                if stage == GROWTH_STAGE and subject in SINGLE_LAYERS.values():
                    continue  # what one layer costs is seen in the core stage
                try:
                    turn = take_turn(subject, stage, number, most=most)
                except UnavailableError as exc:
                    campaign.notes.append(f"{subject.name} missed {stage} round {number}: {exc}")
                    continue
                _tell(campaign, turn)
    _tell(campaign, take_turn(DIRECT, LAST_CONTROL, 0))
    yardsticks.append(loopback_us())
    told = [f"{used:.1f} µs" for used in yardsticks]
    campaign.machine["one write and one read of 250 bytes over loopback"] = (
        f"{told[0]} of CPU at first, {told[1]} at last"
    )
    return campaign


def hold(subject: Subject) -> None:
    """Keep a subject under the core workloads until interrupted, for a profiler to look at."""
    subject.prepare()
    with staged(subject) as stage, contextlib.suppress(KeyboardInterrupt):
        print(f"{subject.name} is process {stage.subject_pid}; Ctrl-C ends it", flush=True)
        while True:
            for workload in CORE:
                stage.measure(workload)


def describe_machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = {line.partition(": ")[2] for line in cpuinfo.splitlines() if "model name" in line}
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def loopback_us(times: int = 20_000) -> float:
    """CPU of what no proxy can do without, once per chunk: the yardstick of this machine."""
    message = bytes(250)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as near,
        listening.accept()[0] as far,
    ):
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = time.process_time_ns()
        for _ in range(times):
            near.send(message)
            far.recv(4096)
        return (time.process_time_ns() - before) / times / 1000


def _rehearse(subjects: Sequence[Subject], campaign: Campaign) -> list[Subject]:
    """Prepare and start each one once; who cannot is left out by name, with the reason."""
    able = []
    for subject in subjects:
        try:
            version = subject.prepare()
            with staged(subject):
                able.append(subject)
                campaign.versions[subject.name] = version
        except UnavailableError as exc:
            campaign.left_out[subject.name] = str(exc)
            print(f"{subject.name} is left out: {exc}", file=sys.stderr)
    return able


def _tell(campaign: Campaign, turn: Turn) -> None:
    campaign.turns.append(turn)
    said = []
    for workload, measured in turn.measurements.items():
        steady = turn.stage == GROWTH_STAGE and measured.steady_units
        used = measured.steady_cpu_us if steady else measured.cpu_us
        cost = measured.problem or f"{used:.1f} µs"
        said.append(f"{workload}: {cost}")
    print(f"{turn.stage} {turn.round + 1} · {turn.subject} · {' · '.join(said)}", file=sys.stderr)


@contextlib.contextmanager
def _process(
    argv: Sequence[str], environ: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that all it started ends with it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**inherited_environ(), **environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _printed_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if (text := log.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.02)
    raise RuntimeError(f"the model server does not start: {_last_words(log)}")


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Up means: a question put to the subject is answered by the model server."""
    deadline = time.monotonic() + START_LIMIT
    head, _, body = wire.request(7).partition(b"\r\n\r\n")
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    headers = {name.decode(): value.decode() for name, _, value in lines}
    seen = "no connection"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"exits with {process.returncode}: {_last_words(log)}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            seen = f"{response.status} {response.read()[:200]!r}"
            connection.close()
            if response.status == 200:
                return
        time.sleep(0.1)
    raise UnavailableError(f"does not answer within {START_LIMIT:.0f} s: {seen} {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-2:]) or "it said nothing"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _raise_descriptor_limit(campaign: Campaign) -> int:
    """A proxy needs two descriptors per stream. Returns how many streams that allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (hard - 200) // 2
    for workload in GROWTH:
        if workload.streams > most:
            reason = f"the descriptor limit of {hard} is too low"
            campaign.notes.append(f"no run with {workload.streams} streams: {reason}")
    return most
