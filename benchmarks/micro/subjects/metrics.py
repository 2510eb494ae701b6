"""What Prometheus is told: counting, once per request, and telling, once per scrape."""

import re

from benchmarks.micro.registry import Preparation, Work, benchmark, calls
from llmproxy.errors import Outcome
from llmproxy.metrics import Metrics


@benchmark("metrics.request", "request")
async def request() -> Preparation:
    """All that is counted of one request that was answered."""
    metrics = Metrics()
    counted = 0

    async def run(count: int) -> int:
        nonlocal counted
        for _ in range(count):
            _count_one(metrics, "llama", "gpu1")
        counted += count
        return count

    yield Work(run)
    series = re.search(rb"^llmproxy_requests_total\{.*\} (.*)$", metrics.render(), re.MULTILINE)
    assert series is not None and float(series[1]) == counted, series


@benchmark("metrics.render", "scrape")
async def render() -> Preparation:
    """4 upstreams, 20 models."""
    metrics = Metrics()
    for upstream in range(4):
        for model in range(20):
            _count_one(metrics, f"model-{model}", f"gpu{upstream}")
    yield calls(lambda text: text.count(b"llmproxy_requests_total{") == 80, metrics.render)


def _count_one(metrics: Metrics, model: str, upstream: str) -> None:
    metrics.inflight(+1)
    metrics.asking(upstream, +1)
    metrics.asking(upstream, -1)
    metrics.attempt(upstream, "ok")
    metrics.inflight(-1)
    metrics.request(
        model=model,
        upstream=upstream,
        status=200,
        outcome=Outcome.COMPLETED,
        duration=1.2,
        overhead=0.0003,
    )
    metrics.stream(upstream, 0.2, 0.02)
