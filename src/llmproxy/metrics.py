"""What Prometheus is told of: the counting. How it is told is in `exposition.py`.

The library's own counters take a lock and check their arguments: 0.8 us for each of the ten
that a request touches. Here a request adds to plain tables.

Labels are bounded: there are only so many upstreams, and one that has gone is forgotten; a model
counts under its own name only once an upstream has answered for it, and only so many of them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmproxy import exposition
from llmproxy.distribution import Distribution
from llmproxy.errors import Outcome
from llmproxy.exposition import FAMILIES, GAP, LAG, OVERHEAD, WAIT, Labels
from llmproxy.records import Usage

MOST_LIMITS = 500
MOST_MODELS = 200
LONGEST_MODEL = 128  # characters
OTHER = "other"

_COMPLETED = Outcome.COMPLETED  # looking a member up in its Enum takes three times as long
BREAKER = {"closed": 0, "half-open": 1, "open": 2}

KINDS = ("prompt", "completion", "cached", "reasoning")  # of tokens

State = dict[str, list[tuple[list[str], Any]]]
"""All tables as they travel between processes: by name, rows of labels and value."""


class Metrics:
    """All series of one app: two mounts in one process must not mix."""

    def __init__(self) -> None:
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._attempts: defaultdict[Labels, int] = defaultdict(int)
        self._upstream_inflight: defaultdict[Labels, int] = defaultdict(int)
        self._upstream_up: dict[Labels, int] = {}
        self._breaker: dict[Labels, int] = {}
        self._tokens: defaultdict[Labels, int] = defaultdict(int)
        self._used: dict[str, list[int]] = {}  # by model, in the order of KINDS; of late
        self._inflight = 0
        self._duration: dict[Labels, Distribution] = {}
        self._first_token: dict[Labels, Distribution] = {}
        self._gap: dict[Labels, Distribution] = {}
        self._overhead = Distribution(OVERHEAD)
        self._lag = Distribution(LAG)
        self._queue_depth = 0
        self._queue = Distribution(WAIT)
        self._limit_rejections: defaultdict[Labels, int] = defaultdict(int)
        self._soft_budgets: defaultdict[Labels, int] = defaultdict(int)
        self._dropped: defaultdict[Labels, int] = defaultdict(int)
        self._rescues: defaultdict[Labels, int] = defaultdict(int)
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
        usage: Usage | None = None,
        answering: str | None = None,
    ) -> None:
        """Record a request that has ended, and what it has used.

        `answering` is the model that has answered, where that is not the one asked for: no caller
        has named it, it stands behind an alias or in a fallback chain.
        """
        if upstream is not None and outcome is _COMPLETED and model not in self._models:
            self._learn(model)
        server = upstream or ""
        label = self._label(model)
        self._requests[label, server, str(status), outcome._value_] += 1
        _of(self._duration, server, WAIT).add(duration)
        self._overhead.add(overhead)
        if usage is not None:
            if answering is not None and answering != model:
                self._learn(answering)
                label = self._label(answering)
            used = self._used.get(label)
            if used is None:
                used = self._used[label] = [0] * len(KINDS)
            used[0] += usage.prompt
            used[1] += usage.completion
            if usage.cached or usage.reasoning:
                used[2] += usage.cached
                used[3] += usage.reasoning

    def stream(self, upstream: str | None, first_token: float, gap: float | None) -> None:
        """Record the pace of a stream that has ended."""
        server = upstream or ""
        _of(self._first_token, server, WAIT).add(first_token)
        if gap is not None:
            _of(self._gap, server, GAP).add(gap)

    def asking(self, upstream: str, change: int) -> None:
        """Count a request to an upstream in or out."""
        self._upstream_inflight[(upstream,)] += change

    def attempt(self, upstream: str, result: str) -> None:
        """Record what came of asking an upstream."""
        self._attempts[upstream, result] += 1

    def probed(self, upstream: str, up: bool) -> None:
        """Record what a probe has found."""
        self._upstream_up[(upstream,)] = int(up)

    def breaker(self, upstream: str, state: str) -> None:
        """Record what a breaker has become, in pybreaker's words."""
        self._breaker[(upstream,)] = BREAKER[state]

    def left(self, upstream: str) -> None:
        """Drop the state of an upstream that has left; requests may still be on their way."""
        self._upstream_up.pop((upstream,), None)
        self._breaker.pop((upstream,), None)

    def forget(self, upstream: str) -> None:
        """Drop every series of an upstream that has gone: others will come under other names."""
        tables: Mapping[str, dict[Labels, Any]] = {
            **self.counters(),
            **self.gauges(),
            **self.distributions(),
        }
        for name, table in tables.items():
            if "upstream" in FAMILIES[name].labels:
                at = FAMILIES[name].labels.index("upstream")
                for labels in [each for each in table if each[at] == upstream]:
                    del table[labels]

    def limit_rejected(self, limit: str) -> None:
        """Record a request that was refused because of this limit or budget."""
        self._limit_rejections[(_bounded(self._limit_rejections, limit),)] += 1

    def soft_budget_reached(self, budget: str) -> None:
        """Record a request that was let in although this soft budget is spent."""
        self._soft_budgets[(_bounded(self._soft_budgets, budget),)] += 1

    def settlements_dropped(self, count: int) -> None:
        """Record amounts that could not be kept until the store was back."""
        self._dropped[()] += count

    def rescue(self, result: str) -> None:
        """Count a stream that broke: `rescued`, or in one word why not."""
        self._rescues[(result,)] += 1

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
        return exposition.text(total.counters(), total.gauges(), total.distributions())

    def state(self) -> State:
        """Return all tables as they travel between processes."""
        state: State = {}
        for name, counts in (self.counters() | self.gauges()).items():
            state[name] = [(list(labels), count) for labels, count in counts.items()]
        for name, spread in self.distributions().items():
            state[name] = [
                (list(labels), [each.counts, each.nanoseconds()]) for labels, each in spread.items()
            ]
        return state

    def add(self, state: State, *, alive: bool) -> None:
        """Take in the tables of another worker; of one that has ended only what adds up."""
        for name, counts in self.counters().items():
            for labels, count in state.get(name, ()):
                counts[tuple(labels)] = counts.get(tuple(labels), 0) + count
        for name, spread in self.distributions().items():
            for labels, (buckets, total) in state.get(name, ()):
                key = tuple(labels)
                if key not in spread:
                    spread[key] = Distribution(FAMILIES[name].bounds)
                spread[key].merge(buckets, total)
        if alive:
            for _, count in state.get("llmproxy_inflight_requests", ()):
                self._inflight += count
            for _, count in state.get("llmproxy_queue_depth", ()):
                self._queue_depth += count
            for labels, count in state.get("llmproxy_upstream_inflight", ()):
                self._upstream_inflight[tuple(labels)] += count
            # Each worker has probes and breakers of its own. One that got an answer got one;
            # and one that keeps requests away keeps them away.
            _highest(self._upstream_up, state.get("llmproxy_upstream_up", ()))
            _highest(self._breaker, state.get("llmproxy_breaker_state", ()))

    def _learn(self, model: str | None) -> None:
        if model is not None and len(self._models) < MOST_MODELS and len(model) <= LONGEST_MODEL:
            self._models.add(model)

    def _label(self, model: str | None) -> str:
        if model is None:
            return ""
        return model if model in self._models else OTHER

    def counters(self) -> dict[str, dict[Labels, int]]:
        """Return the tables of everything that only grows."""
        self._sum_up()
        return {
            "llmproxy_requests": self._requests,
            "llmproxy_upstream_attempts": self._attempts,
            "llmproxy_tokens": self._tokens,
            "llmproxy_limit_rejections": self._limit_rejections,
            "llmproxy_soft_budget_requests": self._soft_budgets,
            "llmproxy_settlements_dropped": self._dropped,
            "llmproxy_rescues": self._rescues,
        }

    def gauges(self) -> dict[str, dict[Labels, int]]:
        """Return those of everything that is a state."""
        return {
            "llmproxy_inflight_requests": {(): self._inflight},
            "llmproxy_queue_depth": {(): self._queue_depth},
            "llmproxy_upstream_inflight": self._upstream_inflight,
            "llmproxy_upstream_up": self._upstream_up,
            "llmproxy_breaker_state": self._breaker,
        }

    def distributions(self) -> dict[str, dict[Labels, Distribution]]:
        """Return those of everything that is measured."""
        return {
            "llmproxy_request_duration_seconds": self._duration,
            "llmproxy_time_to_first_token_seconds": self._first_token,
            "llmproxy_inter_token_seconds": self._gap,
            "llmproxy_overhead_seconds": {(): self._overhead},
            "llmproxy_queue_seconds": {(): self._queue},
            "llmproxy_event_loop_lag_seconds": {(): self._lag},
        }

    def _sum_up(self) -> None:
        """Put what was used of late into its table: for each request that would take longer."""
        for model, used in self._used.items():
            self._tokens[model, "prompt"] += used[0]
            self._tokens[model, "completion"] += used[1]
            for kind, count in zip(KINDS[2:], used[2:], strict=True):
                if count:
                    self._tokens[model, kind] += count
        self._used.clear()


def _bounded(table: dict[Labels, int], label: str) -> str:
    """Return a label that may be counted: keys are issued with whatever limits one likes."""
    return label if (label,) in table or len(table) < MOST_LIMITS else OTHER


def _of(table: dict[Labels, Distribution], label: str, bounds: Sequence[float]) -> Distribution:
    found = table.get((label,))
    if found is None:
        found = table[(label,)] = Distribution(bounds)
    return found


def _highest(table: dict[Labels, int], rows: Sequence[tuple[list[str], int]]) -> None:
    for labels, value in rows:
        key = tuple(labels)
        table[key] = max(value, table.get(key, 0))
