"""Which policy is whose."""

import inspect

import pytest

from llmproxy.routing import policies
from llmproxy.routing.choosing import Choosing, choosing, choosing_text
from llmproxy.routing.policies import POLICIES

WRITTEN = "least_load,llama-70b=prefix,llama-70b*=latency,llama-*=session,*-70b=p2c"


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        pytest.param("llama-70b", "prefix", id="the_name_itself"),
        pytest.param("llama-8b", "session", id="a_glob"),
        pytest.param("llama-1-70b", "session", id="the_glob_with_more_letters"),
        pytest.param("qwen-70b", "p2c", id="another_glob"),
        pytest.param("phi-4", "least_load", id="all_the_others"),
        pytest.param(None, "least_load", id="a_request_for_no_model"),
    ],
)
def test_the_name_wins_then_the_glob_that_says_most(model: str | None, policy: str) -> None:
    """In whatever order they are written."""
    entries = WRITTEN.split(",")

    assert choosing(entries).policy_for(model) == policy
    assert choosing(entries[::-1]).policy_for(model) == policy


def test_a_bracket_is_a_part_of_a_name() -> None:
    """Only * and ? stand for something else."""
    assert choosing("a[1]?=prefix").policy_for("a[1]x") == "prefix"
    assert choosing("a[1]?=prefix").policy_for("a1x") == "least_load"


@pytest.mark.parametrize(
    "given",
    [
        WRITTEN,
        {
            "*": "least_load",
            "llama-70b": "prefix",
            "llama-70b*": "latency",
            "llama-*": "session",
            "*-70b": "p2c",
        },
        " llama-70b = prefix , LEAST_LOAD, llama-70b*=latency, llama-*=session, *-70b=p2c,",
    ],
    ids=["text", "table", "spaces"],
)
def test_what_is_written_is_what_is_shown(given: object) -> None:
    """The policy for all comes first."""
    assert choosing_text(choosing(given)) == WRITTEN
    assert choosing(None) == choosing("") == Choosing()


@pytest.mark.parametrize(
    "given",
    [
        *("random", "a=random", "prefix,p2c", "prefix,*=p2c", "a=prefix,a=p2c", "=prefix"),
        *(5, [5], {"a": 5}, {"a": ["prefix"]}, {5: "prefix"}),
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused(given: object) -> None:
    """The message names those that there are."""
    with pytest.raises(ValueError, match=r"least_load|two policies|must be"):
        choosing(given)


def test_the_policies_that_need_no_memory_are_functions_of_their_name() -> None:
    """A name in the list is one that somebody has written."""
    written = {name for name, _ in inspect.getmembers(policies, inspect.isfunction)}

    assert {"least_load", "weighted", "p2c", "latency"} <= written & set(POLICIES)
    assert set(POLICIES) - written == {"round_robin", "prefix", "session"}
