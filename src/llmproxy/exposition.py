"""How it is told to Prometheus: the name, help, labels and buckets of all series, and the text.

The library is asked only here, and only when somebody scrapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from llmproxy.distribution import Distribution

CONTENT_TYPE = CONTENT_TYPE_LATEST

Labels = tuple[str, ...]
Counts = Mapping[str, Mapping[Labels, int]]
"""Tables by the name of their family."""

Spreads = Mapping[str, Mapping[Labels, Distribution]]

# Prefill on a busy GPU takes minutes; the library's default ends at 10 s.
WAIT = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
)  # fmt: skip
GAP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)
LAG = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Family(NamedTuple):
    """What is said of all series of one name."""

    help: str
    labels: Labels = ()
    bounds: Sequence[float] = ()  # of the buckets, where it has some


COUNTERS = {
    "llmproxy_requests": Family("Requests that ended.", ("model", "upstream", "status", "outcome")),
    "llmproxy_upstream_attempts": Family(
        "Requests to an upstream, by what came of them.", ("upstream", "result")
    ),
    "llmproxy_tokens": Family(
        "Tokens that were used: cached ones are part of the prompt, reasoning of the answer.",
        ("model", "kind"),
    ),
    "llmproxy_limit_rejections": Family(
        "Requests that were refused because of a limit or a budget.", ("limit",)
    ),
    "llmproxy_soft_budget_requests": Family(
        "Requests that were let in although a budget that only warns is spent.", ("budget",)
    ),
    "llmproxy_settlements_dropped": Family(
        "Amounts of limits and budgets that were lost while the store was away."
    ),
    "llmproxy_rescues": Family(
        "Streams that broke after they had begun, by what came of them.", ("result",)
    ),
}
"""Everything that only grows."""

GAUGES = {
    "llmproxy_inflight_requests": Family("Requests that have not ended yet."),
    "llmproxy_queue_depth": Family("Requests that wait for their turn."),
    "llmproxy_upstream_inflight": Family(
        "Requests that an upstream has not finished yet.", ("upstream",)
    ),
    "llmproxy_upstream_up": Family(
        "Whether the last probe of an upstream succeeded.", ("upstream",)
    ),
    "llmproxy_breaker_state": Family(
        "Whether requests are kept from an upstream that fails: 0 no, 1 but for one, 2 all.",
        ("upstream",),
    ),
}
"""Everything that is a state."""

DISTRIBUTIONS = {
    "llmproxy_request_duration_seconds": Family(
        "From the head of a request to the last byte of its answer.", ("upstream",), WAIT
    ),
    "llmproxy_time_to_first_token_seconds": Family(
        "From the head of a request to the first byte of its stream.", ("upstream",), WAIT
    ),
    "llmproxy_inter_token_seconds": Family(
        "The mean gap between two reads of a stream, once per stream.", ("upstream",), GAP
    ),
    "llmproxy_overhead_seconds": Family(
        "The part of a request's time in which no upstream was at work on it.", (), OVERHEAD
    ),
    "llmproxy_queue_seconds": Family(
        "The time in the queue of the requests that had to wait for their turn.", (), WAIT
    ),
    "llmproxy_event_loop_lag_seconds": Family(
        "How late the event loop was for an appointment with itself.", (), LAG
    ),
}
"""Everything that is measured."""

FAMILIES: Mapping[str, Family] = {**COUNTERS, **GAUGES, **DISTRIBUTIONS}


def text(counters: Counts, gauges: Counts, distributions: Spreads) -> bytes:
    """Return these tables in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Tables(counters, gauges, distributions))
    return generate_latest(registry)


class _Tables(Collector):
    """Hands the tables to the library."""

    def __init__(self, counters: Counts, gauges: Counts, distributions: Spreads) -> None:
        self._counters = counters
        self._gauges = gauges
        self._distributions = distributions

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for name, about in COUNTERS.items():
            counter = CounterMetricFamily(name, about.help, labels=about.labels)
            for values, count in self._counters[name].items():
                counter.add_metric(values, count)
            yield counter
        for name, about in GAUGES.items():
            gauge = GaugeMetricFamily(name, about.help, labels=about.labels)
            for values, count in self._gauges[name].items():
                gauge.add_metric(values, count)
            yield gauge
        for name, about in DISTRIBUTIONS.items():
            histogram = HistogramMetricFamily(name, about.help, labels=about.labels)
            for values, each in self._distributions[name].items():
                histogram.add_metric(values, each.cumulated(), each.nanoseconds() / 1e9)
            yield histogram
