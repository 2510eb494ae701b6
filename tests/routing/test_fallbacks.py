"""The models behind a model."""

import pytest

from llmproxy.routing.fallbacks import Fallbacks, chain_text, fallbacks


@pytest.mark.parametrize("given", ["a=a", "a=b|a", "context:a=b|a"])
def test_a_chain_that_leads_back_is_refused(given: str) -> None:
    """A model that has failed does not stand in for itself."""
    with pytest.raises(ValueError, match="back to itself"):
        fallbacks(given)


def test_two_models_may_stand_in_for_each_other() -> None:
    """A request goes along the chain of the model that it asks for, and no other."""
    chains = Fallbacks(fallbacks("a=b,b=a"))

    assert chains.on_failure("a") == ("b",)
    assert chains.on_failure("b") == ("a",)


def test_failures_and_long_prompts_have_chains_of_their_own() -> None:
    """One does not lead into the other."""
    chains = Fallbacks(fallbacks("big=medium|small,context:big=long,context:medium=big"))

    assert chains.on_failure("big") == ("medium", "small")
    assert chains.when_too_long("big") == ("long",)
    assert chains.on_failure("other") == () == chains.when_too_long(None)


def test_what_is_written_is_what_is_shown() -> None:
    """And it can be read again, from a table too."""
    written = "big=medium|small,context:big=long"

    assert ",".join(map(chain_text, fallbacks(written))) == written
    assert fallbacks({"big": ["medium", "small"], "context:big": "long"}) == fallbacks(written)
    assert fallbacks(written.split(",")) == fallbacks(written)


@pytest.mark.parametrize(
    "given",
    ["a", "a=", "=b", "context:=b", "a=b,a=c", "a=b;choose=weight", {"a": {"models": []}}, 5],
    ids=str,
)
def test_what_is_no_chain_is_refused(given: object) -> None:
    """The message says how one looks."""
    with pytest.raises(ValueError, match=r"must be|two chains|no options"):
        fallbacks(given)
