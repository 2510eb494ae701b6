"""What is asked of every subject: how many streams, how long, how many requests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Streams:
    """Open streams at once, each with chunks that leave the model server `gap_ms` apart."""

    streams: int
    chunks: int
    gap_ms: int
    ramp_ms: int = 1  # between two openings, so that the streams are out of step with each other

    @property
    def name(self) -> str:
        return f"{self.streams} streams x {self.chunks} chunks x {self.gap_ms} ms"

    @property
    def units(self) -> int:
        return self.streams * self.chunks

    @property
    def script_seconds(self) -> float:
        """How long the run takes when nobody is late."""
        return (self.streams * self.ramp_ms + self.chunks * self.gap_ms) / 1000


@dataclass(frozen=True, slots=True)
class Unary:
    """Connections that each send one request after the other, without a pause."""

    connections: int
    requests: int  # on each connection

    @property
    def name(self) -> str:
        return f"{self.connections} connections x {self.requests} requests"

    @property
    def units(self) -> int:
        return self.connections * self.requests


Workload = Streams | Unary

CORE_STREAMS = Streams(streams=100, chunks=100, gap_ms=10)
CORE_UNARY = Unary(connections=32, requests=100)
CORE: tuple[Workload, ...] = (CORE_STREAMS, CORE_UNARY)

WARM_UP: tuple[Workload, ...] = (Streams(20, 50, 5), Unary(8, 40))

# 5,000 chunks per second in each of them: only the number of open streams grows. The last stream
# must be open well before the first one ends, for the cost is taken while all of them are.
GROWTH: tuple[Streams, ...] = (
    Streams(10, 1000, 2),
    Streams(100, 150, 20),
    Streams(1000, 25, 200),
    Streams(5000, 12, 1000),
)
MEMORY_AT = (1000, 5000)  # streams; with fewer, what one stream holds is lost in the noise
