"""What Prometheus is told.

The library's own counters take a lock and check their arguments: 0.8 us for each of the ten
that a request touches. Here a request adds to plain tables, and the library is asked only when
somebody scrapes.

Labels are bounded: upstreams are configured, a model counts under its own name only once an
upstream has answered for it, and only so many of them.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from llmproxy.errors import Outcome
from llmproxy.records import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_LIMITS = 500
MOST_MODELS = 200
LONGEST_MODEL = 128  # characters
OTHER = "other"

# Prefill on a busy GPU takes minutes; the library's default ends at 10 s.
_WAIT = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
)  # fmt: skip
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)
_LAG = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_BOUNDS = {
    "llmproxy_request_duration_seconds": _WAIT,
    "llmproxy_time_to_first_token_seconds": _WAIT,
    "llmproxy_inter_token_seconds": _GAP,
    "llmproxy_overhead_seconds": _OVERHEAD,
    "llmproxy_queue_seconds": _WAIT,
    "llmproxy_event_loop_lag_seconds": _LAG,
}

Labels = tuple[str, ...]

State = dict[str, list[tuple[list[str], Any]]]
"""All tables as they travel between processes: by name, rows of labels and value."""


class Distribution:
    """How values were spread: a count per bucket, and their sum."""

    __slots__ = ("_merged", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._merged = 0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, counts: Sequence[int], nanoseconds: int) -> None:
        """Take in what somebody else has counted; other buckets than ours are left out."""
        if len(counts) == len(self.counts):
            self.counts = [ours + theirs for ours, theirs in zip(self.counts, counts, strict=True)]
            self._merged += nanoseconds

    def nanoseconds(self) -> int:
        """Return the sum over all of us: whole, so that the order of adding makes no difference."""
        return round(self.sum * 1e9) + self._merged

    def cumulated(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus has them: each with all below it."""
        total = 0
        buckets = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """All series of one app: two mounts in one process must not mix."""

    def __init__(self) -> None:
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._attempts: defaultdict[Labels, int] = defaultdict(int)
        self._upstream_inflight: defaultdict[Labels, int] = defaultdict(int)
        self._upstream_up: dict[Labels, int] = {}
        self._tokens: defaultdict[Labels, int] = defaultdict(int)
        self._inflight = 0
        self._duration: dict[Labels, Distribution] = {}
        self._first_token: dict[Labels, Distribution] = {}
        self._gap: dict[Labels, Distribution] = {}
        self._overhead = Distribution(_OVERHEAD)
        self._lag = Distribution(_LAG)
        self._queue_depth = 0
        self._queue = Distribution(_WAIT)
        self._limit_rejections: defaultdict[Labels, int] = defaultdict(int)
        self._soft_budgets: defaultdict[Labels, int] = defaultdict(int)
        self._dropped: defaultdict[Labels, int] = defaultdict(int)
        self._models: set[str] = set()
        self.others: Callable[[], list[State]] = list
        """Where the tables of other workers come from; nobody else's without any."""

    def inflight(self, change: int) -> None:
        """Count a request in or out."""
        self._inflight += change

    def request(
        self,
        *,
        model: str | None,
        upstream: str | None,
        status: int,
        outcome: Outcome,
        duration: float,
        overhead: float,
    ) -> None:
        """Record a request that has ended."""
        if upstream is not None and outcome is Outcome.COMPLETED:
            self._learn(model)
        server = upstream or ""
        self._requests[self._label(model), server, str(status), outcome.value] += 1
        _of(self._duration, server, _WAIT).add(duration)
        self._overhead.add(overhead)

    def stream(self, upstream: str | None, first_token: float, gap: float | None) -> None:
        """Record the pace of a stream that has ended."""
        server = upstream or ""
        _of(self._first_token, server, _WAIT).add(first_token)
        if gap is not None:
            _of(self._gap, server, _GAP).add(gap)

    def tokens(self, model: str | None, usage: Usage) -> None:
        """Record what a request has used; after the request itself, which makes a model known."""
        label, table = self._label(model), self._tokens
        table[label, "prompt"] += usage.prompt
        table[label, "completion"] += usage.completion
        if usage.cached:
            table[label, "cached"] += usage.cached
        if usage.reasoning:
            table[label, "reasoning"] += usage.reasoning

    def asking(self, upstream: str, change: int) -> None:
        """Count a request to an upstream in or out."""
        self._upstream_inflight[(upstream,)] += change

    def attempt(self, upstream: str, result: str) -> None:
        """Record what came of asking an upstream."""
        self._attempts[upstream, result] += 1

    def probed(self, upstream: str, up: bool) -> None:
        """Record what a probe has found."""
        self._upstream_up[(upstream,)] = int(up)

    def limit_rejected(self, limit: str) -> None:
        """Record a request that was refused because of this limit or budget."""
        self._limit_rejections[(_bounded(self._limit_rejections, limit),)] += 1

    def soft_budget_reached(self, budget: str) -> None:
        """Record a request that was let in although this soft budget is spent."""
        self._soft_budgets[(_bounded(self._soft_budgets, budget),)] += 1

    def settlements_dropped(self, count: int) -> None:
        """Record amounts that could not be kept until the store was back."""
        self._dropped[()] += count

    def waiting(self, change: int) -> None:
        """Count a request into the queue or out of it."""
        self._queue_depth += change

    def waited(self, seconds: float) -> None:
        """Record how long a request was in the queue, whatever became of it."""
        self._queue.add(seconds)

    def lag(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._lag.add(seconds)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, over all workers."""
        total = Metrics()
        for state in (self.state(), *self.others()):
            total.add(state, alive=True)
        registry = CollectorRegistry()
        registry.register(_Tables(total))
        return generate_latest(registry)

    def state(self) -> State:
        """Return all tables as they travel between processes."""
        state: State = {}
        for name, _, _, counts in (*self.counters(), *self.gauges()):
            state[name] = [(list(labels), count) for labels, count in counts.items()]
        for name, _, _, spread in self.distributions():
            state[name] = [
                (list(labels), [each.counts, each.nanoseconds()]) for labels, each in spread.items()
            ]
        return state

    def add(self, state: State, *, alive: bool) -> None:
        """Take in the tables of another worker; of one that has ended only what adds up."""
        for name, _, _, counts in self.counters():
            for labels, count in state.get(name, ()):
                counts[tuple(labels)] = counts.get(tuple(labels), 0) + count
        for name, _, _, spread in self.distributions():
            for labels, (buckets, total) in state.get(name, ()):
                key = tuple(labels)
                if key not in spread:
                    spread[key] = Distribution(_BOUNDS[name])
                spread[key].merge(buckets, total)
        if alive:
            for _, count in state.get("llmproxy_inflight_requests", ()):
                self._inflight += count
            for _, count in state.get("llmproxy_queue_depth", ()):
                self._queue_depth += count
            for labels, count in state.get("llmproxy_upstream_inflight", ()):
                self._upstream_inflight[tuple(labels)] += count
            for labels, up in state.get("llmproxy_upstream_up", ()):
                # Each worker has its own last probe; one that got an answer got one.
                key = tuple(labels)
                self._upstream_up[key] = max(up, self._upstream_up.get(key, 0))

    def _learn(self, model: str | None) -> None:
        if model is not None and len(self._models) < MOST_MODELS and len(model) <= LONGEST_MODEL:
            self._models.add(model)

    def _label(self, model: str | None) -> str:
        if model is None:
            return ""
        return model if model in self._models else OTHER

    def counters(self) -> Iterator[tuple[str, str, Labels, dict[Labels, int]]]:
        """Return name, help, labels and table of everything that only grows."""
        yield (
            "llmproxy_requests",
            "Requests that ended.",
            ("model", "upstream", "status", "outcome"),
            self._requests,
        )
        yield (
            "llmproxy_upstream_attempts",
            "Requests to an upstream, by what came of them.",
            ("upstream", "result"),
            self._attempts,
        )
        yield (
            "llmproxy_tokens",
            "Tokens that were used: cached ones are part of the prompt, reasoning of the answer.",
            ("model", "kind"),
            self._tokens,
        )
        yield (
            "llmproxy_limit_rejections",
            "Requests that were refused because of a limit or a budget.",
            ("limit",),
            self._limit_rejections,
        )
        yield (
            "llmproxy_soft_budget_requests",
            "Requests that were let in although a budget that only warns is spent.",
            ("budget",),
            self._soft_budgets,
        )
        yield (
            "llmproxy_settlements_dropped",
            "Amounts of limits and budgets that were lost while the store was away.",
            (),
            self._dropped,
        )

    def gauges(self) -> Iterator[tuple[str, str, Labels, dict[Labels, int]]]:
        """Return the same of everything that is a state."""
        yield (
            "llmproxy_inflight_requests",
            "Requests that have not ended yet.",
            (),
            {(): self._inflight},
        )
        yield (
            "llmproxy_queue_depth",
            "Requests that wait for their turn.",
            (),
            {(): self._queue_depth},
        )
        yield (
            "llmproxy_upstream_inflight",
            "Requests that an upstream has not finished yet.",
            ("upstream",),
            self._upstream_inflight,
        )
        yield (
            "llmproxy_upstream_up",
            "Whether the last probe of an upstream succeeded.",
            ("upstream",),
            self._upstream_up,
        )

    def distributions(self) -> Iterator[tuple[str, str, Labels, dict[Labels, Distribution]]]:
        """Return the same of everything that is measured."""
        yield (
            "llmproxy_request_duration_seconds",
            "From the head of a request to the last byte of its answer.",
            ("upstream",),
            self._duration,
        )
        yield (
            "llmproxy_time_to_first_token_seconds",
            "From the head of a request to the first byte of its stream.",
            ("upstream",),
            self._first_token,
        )
        yield (
            "llmproxy_inter_token_seconds",
            "The mean gap between two reads of a stream, once per stream.",
            ("upstream",),
            self._gap,
        )
        yield (
            "llmproxy_overhead_seconds",
            "The part of a request's time in which no upstream was at work on it.",
            (),
            {(): self._overhead},
        )
        yield (
            "llmproxy_queue_seconds",
            "The time in the queue of the requests that had to wait for their turn.",
            (),
            {(): self._queue},
        )
        yield (
            "llmproxy_event_loop_lag_seconds",
            "How late the event loop was for an appointment with itself.",
            (),
            {(): self._lag},
        )


def _bounded(table: dict[Labels, int], label: str) -> str:
    """Return a label that may be counted: keys are issued with whatever limits one likes."""
    return label if (label,) in table or len(table) < MOST_LIMITS else OTHER


def _of(table: dict[Labels, Distribution], label: str, bounds: Sequence[float]) -> Distribution:
    found = table.get((label,))
    if found is None:
        found = table[(label,)] = Distribution(bounds)
    return found


class _Tables(Collector):
    """Hands the tables to the library when it is asked for them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for name, help_text, labels, counts in self._metrics.counters():
            counter = CounterMetricFamily(name, help_text, labels=labels)
            for values, count in counts.items():
                counter.add_metric(values, count)
            yield counter
        for name, help_text, labels, counts in self._metrics.gauges():
            gauge = GaugeMetricFamily(name, help_text, labels=labels)
            for values, count in counts.items():
                gauge.add_metric(values, count)
            yield gauge
        for name, help_text, labels, spread in self._metrics.distributions():
            histogram = HistogramMetricFamily(name, help_text, labels=labels)
            for values, each in spread.items():
                histogram.add_metric(values, each.cumulated(), each.nanoseconds() / 1e9)
            yield histogram
