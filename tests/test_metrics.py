"""What Prometheus is told."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmproxy.errors import Outcome
from llmproxy.metrics import MOST_MODELS, OTHER, Metrics
from llmproxy.records import Usage
from tests.support.rig import sample

FAMILIES = {
    "llmproxy_requests": "counter",
    "llmproxy_tokens": "counter",
    "llmproxy_request_duration_seconds": "histogram",
    "llmproxy_time_to_first_token_seconds": "histogram",
    "llmproxy_inter_token_seconds": "histogram",
    "llmproxy_overhead_seconds": "histogram",
    "llmproxy_queue_seconds": "histogram",
    "llmproxy_queue_depth": "gauge",
    "llmproxy_limit_rejections": "counter",
    "llmproxy_soft_budget_requests": "counter",
    "llmproxy_settlements_dropped": "counter",
    "llmproxy_inflight_requests": "gauge",
    "llmproxy_upstream_attempts": "counter",
    "llmproxy_upstream_inflight": "gauge",
    "llmproxy_upstream_up": "gauge",
    "llmproxy_breaker_state": "gauge",
    "llmproxy_rescues": "counter",
    "llmproxy_event_loop_lag_seconds": "histogram",
}


def count(
    metrics: Metrics,
    model: str | None = "m",
    *,
    upstream: str | None = "gpu1",
    status: int = 200,
    outcome: Outcome = Outcome.COMPLETED,
    duration: float = 0.1,
    usage: Usage | None = None,
    answering: str | None = None,
) -> None:
    metrics.request(
        model=model,
        upstream=upstream,
        status=status,
        outcome=outcome,
        duration=duration,
        overhead=0.001,
        usage=usage,
        answering=answering,
    )


def busy() -> Metrics:
    """Return metrics in which something of everything has happened."""
    metrics = Metrics()
    metrics.inflight(1)
    count(metrics, usage=Usage(30, 5, cached=16, reasoning=2))
    metrics.stream("gpu1", 0.2, 0.01)
    metrics.asking("gpu1", 1)
    metrics.attempt("gpu1", "ok")
    metrics.probed("gpu1", True)
    metrics.breaker("gpu1", "open")
    metrics.rescue("continued")
    metrics.lag(0.001)
    metrics.limit_rejected("60 req/min per key")
    metrics.soft_budget_reached("soft:5 usd/day per key")
    metrics.settlements_dropped(1)
    metrics.waiting(1)
    metrics.waited(0.2)
    return metrics


def models(metrics: Metrics) -> set[str]:
    """Return the values of the `model` label."""
    return {
        each.labels["model"]
        for family in text_string_to_metric_families(metrics.render().decode())
        for each in family.samples
        if "model" in each.labels
    }


def test_what_is_told_can_be_read() -> None:
    """The library's own parser finds every family, of its type, and nothing else."""
    families = list(text_string_to_metric_families(busy().render().decode()))

    assert {family.name: family.type for family in families} == FAMILIES
    assert all(family.documentation for family in families)
    assert all(family.samples for family in families)


def test_nothing_has_happened_yet() -> None:
    """A fresh proxy can be scraped."""
    metrics = Metrics()

    families = {family.name for family in text_string_to_metric_families(metrics.render().decode())}

    assert families == set(FAMILIES)
    assert sample(metrics.render(), "llmproxy_inflight_requests") == 0


def test_birthdays_are_not_told() -> None:
    """`_created` would double what is scraped."""
    assert b"_created" not in busy().render()


def test_a_request_is_counted_under_its_labels() -> None:
    """Model, upstream, status and outcome, as the contract names them."""
    metrics = Metrics()
    count(metrics)
    count(metrics)
    count(metrics, status=502, outcome=Outcome.UPSTREAM_FAILED)

    told = metrics.render()

    labels = {"model": "m", "upstream": "gpu1"}
    requests = "llmproxy_requests_total"
    assert sample(told, requests, **labels, status="200", outcome="completed") == 2
    assert sample(told, requests, **labels, status="502", outcome="upstream_failed") == 1
    assert sample(told, "llmproxy_request_duration_seconds_count", upstream="gpu1") == 3


def test_tokens_are_counted_by_model_and_kind() -> None:
    """Under a name that somebody has answered to, and none that a caller has made up."""
    metrics = Metrics()
    count(metrics, usage=Usage(30, 5, cached=16, reasoning=2))
    count(metrics, usage=Usage(3, 1))
    count(metrics, "made up", upstream=None, usage=Usage(7, 0))

    told = metrics.render()

    kinds = ("prompt", "completion", "cached", "reasoning")
    name = "llmproxy_tokens_total"
    assert [sample(told, name, model="m", kind=kind) for kind in kinds] == [33, 6, 16, 2]
    assert sample(told, name, model=OTHER, kind="prompt") == 7
    assert b"made up" not in told


def test_tokens_are_those_of_the_model_that_answers() -> None:
    """A name out of a fallback chain or behind an alias is no caller's invention."""
    metrics = Metrics()
    count(metrics, usage=Usage(30, 5), answering="small")

    told = metrics.render()
    assert sample(told, "llmproxy_tokens_total", model="small", kind="prompt") == 30
    assert not sample(told, "llmproxy_tokens_total", model="m", kind="prompt")


def test_a_histogram_adds_up() -> None:
    """Each bucket holds all below it, the last holds all, and the sum is the sum."""
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.03, 700.0):
        count(metrics, duration=seconds)

    told = metrics.render()

    name = "llmproxy_request_duration_seconds"
    bucket = {
        bound: sample(told, f"{name}_bucket", upstream="gpu1", le=bound)
        for bound in ("0.005", "0.025", "0.05", "600.0", "+Inf")
    }
    assert bucket == {"0.005": 2, "0.025": 2, "0.05": 3, "600.0": 3, "+Inf": 4}
    assert math.isclose(sample(told, f"{name}_sum", upstream="gpu1"), 700.036)
    assert sample(told, f"{name}_count", upstream="gpu1") == 4


def test_the_buckets_reach_from_milliseconds_to_minutes() -> None:
    """Prefill on a busy GPU takes minutes."""
    bounds = [
        float(each.labels["le"])
        for family in text_string_to_metric_families(busy().render().decode())
        for each in family.samples
        if each.name == "llmproxy_time_to_first_token_seconds_bucket"
    ]

    assert bounds[0] == 0.005
    assert bounds[-2:] == [600.0, math.inf]
    assert bounds == sorted(bounds)


def test_a_name_that_no_engine_knows_makes_no_series() -> None:
    """A caller may invent models: it must not invent labels."""
    metrics = Metrics()
    for number in range(1000):
        count(metrics, f"invented-{number}", status=404, outcome=Outcome.REFUSED)
        count(metrics, f"typo-{number}", upstream=None, outcome=Outcome.REJECTED)

    assert models(metrics) == {OTHER}


def test_a_model_counts_under_its_name_once_an_engine_has_answered_for_it() -> None:
    """From then on its failures do too."""
    metrics = Metrics()
    count(metrics, "llama", outcome=Outcome.REFUSED, status=429)
    count(metrics, "llama")
    count(metrics, "llama", outcome=Outcome.REFUSED, status=429)

    told = metrics.render()

    refused = {"upstream": "gpu1", "status": "429", "outcome": "refused"}
    assert sample(told, "llmproxy_requests_total", model=OTHER, **refused) == 1
    assert sample(told, "llmproxy_requests_total", model="llama", **refused) == 1


def test_even_an_engine_that_answers_for_every_name_makes_few_series() -> None:
    """Some servers take whatever model is named."""
    metrics = Metrics()
    for number in range(10_000):
        count(metrics, f"any-{number}")

    assert len(models(metrics)) == MOST_MODELS + 1
    assert len(metrics.render()) < 100_000


def test_an_endless_name_is_no_label() -> None:
    """However much an engine likes it."""
    metrics = Metrics()
    count(metrics, "m" * 10_000)

    assert models(metrics) == {OTHER}


def test_no_model_is_no_name() -> None:
    """It is told apart from an unknown one."""
    metrics = Metrics()
    count(metrics, None)

    assert models(metrics) == {""}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "é", "{}", "\u2028"])
def test_a_label_can_hold_anything(name: str) -> None:
    """What an engine calls its model comes out as it is, and forges no line."""
    metrics = Metrics()
    count(metrics, name)

    assert models(metrics) == {name}


def test_gauges_go_up_and_down() -> None:
    """What is under way now, and the last that a probe has found."""
    metrics = Metrics()
    for change in (1, 1, -1):
        metrics.inflight(change)
        metrics.asking("gpu1", change)
    metrics.probed("gpu1", True)
    metrics.probed("gpu1", False)
    metrics.probed("gpu2", True)

    told = metrics.render()

    assert sample(told, "llmproxy_inflight_requests") == 1
    assert sample(told, "llmproxy_upstream_inflight", upstream="gpu1") == 1
    assert sample(told, "llmproxy_upstream_up", upstream="gpu1") == 0
    assert sample(told, "llmproxy_upstream_up", upstream="gpu2") == 1


def test_the_state_of_a_breaker_is_told() -> None:
    """In numbers, of which the highest is the worst."""
    metrics = Metrics()
    for state, number in (("closed", 0), ("open", 2), ("half-open", 1)):
        metrics.breaker("gpu1", state)
        told = metrics.render()
        assert sample(told, "llmproxy_breaker_state", upstream="gpu1") == number


def test_of_several_workers_the_worst_breaker_is_told() -> None:
    """And the best probe: who got an answer got one."""
    metrics, other = busy(), Metrics()
    other.probed("gpu1", False)
    other.breaker("gpu1", "closed")
    metrics.others = lambda: [other.state()]

    told = metrics.render()

    assert sample(told, "llmproxy_breaker_state", upstream="gpu1") == 2
    assert sample(told, "llmproxy_upstream_up", upstream="gpu1") == 1


def test_an_upstream_that_has_gone_is_forgotten() -> None:
    """In every family; nothing else is."""
    metrics = busy()
    count(metrics, upstream="gpu2")
    before = metrics.render()
    metrics.forget("gpu1")
    told = metrics.render()

    assert b'upstream="gpu1"' in before
    assert b'upstream="gpu1"' not in told
    assert b'upstream="gpu2"' in told
    assert {each for each in before.splitlines() if b"upstream" not in each} <= {*told.splitlines()}


def test_two_apps_do_not_mix() -> None:
    """What the one counts the other does not know."""
    first, second = Metrics(), Metrics()
    count(first)

    assert models(first) == {"m"}
    assert models(second) == set()
