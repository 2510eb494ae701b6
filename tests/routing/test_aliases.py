"""Names that stand for models, and the models behind a model."""

from collections import Counter

import pytest

from llmproxy.routing.aliases import Aliases, alias_text, aliases
from llmproxy.routing.fallbacks import Fallbacks, chain_text, fallbacks

WRITTEN = "gpt-4o=llama-3.3-70b,fast=qwen-7b:80|phi-4:20,x=llama3:8b"


def test_a_weight_is_the_digits_after_the_last_colon() -> None:
    """A model's own colon is left alone."""
    read = {alias.name: alias.targets for alias in aliases(WRITTEN)}

    assert read == {
        "gpt-4o": (("llama-3.3-70b", 1),),
        "fast": (("qwen-7b", 80), ("phi-4", 20)),
        "x": (("llama3:8b", 1),),
    }


def test_what_is_written_is_what_is_shown() -> None:
    """And it can be read again."""
    assert ",".join(map(alias_text, aliases(WRITTEN))) == WRITTEN
    chains = "big=medium|small,context:big=long"
    assert ",".join(map(chain_text, fallbacks(chains))) == chains


def test_a_table_says_the_same() -> None:
    """TOML and JSON have tables."""
    assert aliases({"fast": ["qwen-7b:80", "phi-4:20"]}) == aliases("fast=qwen-7b:80|phi-4:20")


def test_weights_are_shares_of_the_callers() -> None:
    """Each caller stays with what it got."""
    named = Aliases(aliases(WRITTEN))
    got = Counter(named.resolve("fast", f"key:{number}") for number in range(2000))

    assert 0.75 < got["qwen-7b"] / 2000 < 0.85
    assert len({named.resolve("fast", "key:ada") for _ in range(50)}) == 1


def test_a_name_that_is_no_alias_stands_for_itself() -> None:
    """So does no name at all."""
    named = Aliases(aliases(WRITTEN))

    assert named.resolve("other", None) == "other"
    assert named.resolve(None, None) is None


@pytest.mark.parametrize(
    "given",
    ["a", "=b", "a=", "a=b|", "a=b,a=c", "a=a", "a=b:0", "a=b,b=c", 5, {"a": 1}, {"a": []}],
    ids=str,
)
def test_what_is_no_alias_is_refused(given: object) -> None:
    """The message says how one looks."""
    with pytest.raises(ValueError, match=r"."):
        aliases(given)


@pytest.mark.parametrize("given", ["a=a", "a=b,b=a", "a=b,b=c,c=a", "context:a=b,context:b=a"])
def test_a_chain_that_leads_back_is_refused(given: str) -> None:
    """Whoever reads it would expect it to go on for ever."""
    with pytest.raises(ValueError, match="back to itself"):
        fallbacks(given)


def test_failures_and_long_prompts_have_chains_of_their_own() -> None:
    """One does not lead into the other."""
    chains = Fallbacks(fallbacks("big=medium|small,context:big=long,context:medium=big"))

    assert chains.on_failure("big") == ("medium", "small")
    assert chains.when_too_long("big") == ("long",)
    assert chains.on_failure("other") == () == chains.when_too_long(None)
