"""One model server: the way to it, and what is known of how it is."""

from collections.abc import Callable
from dataclasses import dataclass

from llmproxy import clock
from llmproxy.records import Upstream
from llmproxy.routing.breaker import Breaker
from llmproxy.transport.interface import Transport

SLOW_START = 10.0  # seconds in which a server that has come back gets its full share again
LEAST_SHARE = 0.1  # of its weight, at the beginning of that
HALF_LIFE = 10.0  # seconds after which half of what was measured is forgotten


@dataclass(slots=True)
class EngineLoad:
    """What an engine says of itself."""

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    seen_at: float = 0.0


class Server:
    """An upstream, its transport, and its state. Policies see it as a `Load`."""

    def __init__(
        self,
        upstream: Upstream,
        transport: Transport,
        *,
        now: Callable[[], float] = clock.now,
        breaker: Breaker | None = None,
    ) -> None:
        self.upstream = upstream
        self.transport = transport
        self.breaker = breaker or Breaker(now)
        self.inflight = 0
        self.load: EngineLoad | None = None
        self.models: frozenset[str] | None = None  # None: it has not told
        self.up = True  # as of the last probe
        self.draining = False
        self.busy_until = 0.0  # it has asked to be left alone until then
        self.back_since = float("-inf")
        self._now = now
        self._latency = 0.0
        self._measured_at = 0.0

    @property
    def name(self) -> str:
        return self.upstream.name

    @property
    def weight(self) -> float:
        """Its weight, less while it is warming up."""
        age = self._now() - self.back_since
        if age >= SLOW_START:
            return float(self.upstream.weight)
        return self.upstream.weight * max(LEAST_SHARE, age / SLOW_START)

    @property
    def waiting(self) -> int:
        return self.load.waiting if self.load is not None else 0

    @property
    def kv_use(self) -> float:
        return self.load.kv_use if self.load is not None else 0.0

    @property
    def latency(self) -> float:
        """Seconds to a first token: a peak counts at once, and is forgotten by and by."""
        return self._latency * self._faded()

    @property
    def full(self) -> bool:
        """Whether it has as many of our requests as it is configured to take."""
        most = self.upstream.max_inflight
        return most > 0 and self.inflight >= most

    def serves(self, model: str | None) -> bool:
        """Tell whether it has a model, as far as it is known."""
        if model is None:
            return True
        if self.upstream.models:
            return model in self.upstream.models
        return self.models is None or model in self.models

    def first_token(self, seconds: float) -> None:
        """Note how long a first token took."""
        faded = self._faded()
        known = self._latency * faded
        self._latency = seconds if seconds > known else seconds + (known - seconds) * faded
        self._measured_at = self._now()

    def came_back(self) -> None:
        """Note that it serves again: it begins slowly."""
        self.back_since = self._now()

    def _faded(self) -> float:
        factor: float = 0.5 ** ((self._now() - self._measured_at) / HALF_LIFE)
        return factor
