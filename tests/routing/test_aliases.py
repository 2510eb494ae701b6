"""Names that stand for models."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmproxy.routing.aliases import Alias, Aliases, alias_text, aliases

WRITTEN = "gpt-4o=llama-3.3-70b,fast=qwen-7b:80|phi-4:20,x=llama3:8b,y=a|b;choose=cheapest"
MODELS = st.text("abz019.:-/", min_size=1, max_size=8)
WEIGHTS = st.integers(1, 1_000_000)
TARGETS = st.lists(st.tuples(MODELS, WEIGHTS), min_size=2, max_size=4)


def test_a_weight_is_the_digits_after_the_last_colon() -> None:
    """A model's own colon is left alone."""
    read = {alias.name: alias.targets for alias in aliases(WRITTEN)}

    assert read == {
        "gpt-4o": (("llama-3.3-70b", 1),),
        "fast": (("qwen-7b", 80), ("phi-4", 20)),
        "x": (("llama3:8b", 1),),
        "y": (("a", 1), ("b", 1)),
    }


def test_what_is_written_is_what_is_shown() -> None:
    """And it can be read again."""
    assert (
        ",".join(map(alias_text, aliases(WRITTEN)))
        == "gpt-4o=llama-3.3-70b,fast=qwen-7b:80|phi-4:20,x=llama3:8b,y=a|b;choose=cheapest"
    )


@given(
    st.builds(Alias, st.just("ALIAS"), TARGETS.map(tuple))
    | st.builds(
        Alias,
        st.just("ALIAS"),
        st.lists(st.tuples(MODELS, st.just(1)), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["weight", "cheapest"]),
    )
)
@example(Alias("ALIAS", (("phi:14", 1),)))
@example(Alias("ALIAS", (("phi:14", 1), ("b", 1)), "cheapest"))
def test_an_alias_that_is_shown_can_be_read_again(alias: Alias) -> None:
    """Also when a model's name ends like a weight."""
    assert aliases(alias_text(alias)) == (alias,)


@pytest.mark.parametrize(
    "given",
    [
        {"fast": ["qwen-7b:80", "phi-4:20"]},
        {"fast": "qwen-7b:80|phi-4:20"},
        {"fast": {"models": ["qwen-7b:80", "phi-4:20"]}},
        {"fast": {"models": "qwen-7b:80|phi-4:20", "choose": "weight"}},
        ["fast=qwen-7b:80|phi-4:20"],
    ],
    ids=str,
)
def test_tables_and_lists_say_the_same(given: object) -> None:
    """TOML and JSON have them."""
    assert aliases(given) == aliases("fast=qwen-7b:80|phi-4:20")


def test_weights_are_shares_of_the_callers() -> None:
    """Each caller stays with what it got."""
    named = Aliases(aliases(WRITTEN))
    got = Counter(named.resolve("fast", f"key:{number}") for number in range(2000))

    assert 0.75 < got["qwen-7b"] / 2000 < 0.85
    assert len({named.resolve("fast", "key:ada") for _ in range(50)}) == 1


@pytest.mark.parametrize(
    ("prices", "chosen"),
    [
        pytest.param({"a": 3.0, "b": 2.0, "c": 4.0}, "b", id="least_of_all"),
        pytest.param({"b": 2.0, "c": 1.0}, "c", id="unknown_is_dearest"),
        pytest.param({"a": 1.0, "b": 1.0, "c": 1.0}, "a", id="ties_by_order"),
        pytest.param({}, "a", id="nobody_knows_any"),
        pytest.param({"b": 0.0, "a": 0.5}, "b", id="for_nothing"),
    ],
)
def test_the_cheapest_is_chosen_by_the_prices_of_now(prices: dict[str, float], chosen: str) -> None:
    """Whoever is asking; and when a price changes, so does the choice."""
    named = Aliases(aliases("x=a|b|c;choose=cheapest"), price=prices.get)

    assert {named.resolve("x", f"key:{number}") for number in range(20)} == {chosen}
    prices["c"] = -1.0
    assert named.resolve("x", None) == "c"


def test_a_name_that_is_no_alias_stands_for_itself() -> None:
    """So does no name at all."""
    named = Aliases(aliases(WRITTEN))

    assert named.resolve("other", None) == "other"
    assert named.resolve(None, None) is None
    assert named
    assert not Aliases()


@pytest.mark.parametrize("given", ["a=a", "a=a:2", "a=b|a", "b=c,a=a;choose=cheapest"])
def test_an_alias_of_itself_is_refused(given: str) -> None:
    """It would never come to a model."""
    with pytest.raises(ValueError, match="for itself"):
        aliases(given)


@pytest.mark.parametrize(
    "given",
    [
        *("a", "=b", "a=", "a=b|", "a=b,a=c", "a=b:0", "a=b:1000001", "a=b,b=c"),
        *("a=b;choose=best", "a=b;color=red", "a=b;choose", "a=b;choose=weight;choose=weight"),
        *("a=b:2|c;choose=cheapest", "a=" + "x" * 257, "a=b\nc"),
        *(5, {"a": 1}, {"a": []}, {"a": {}}, {"a": {"models": 5}}, {5: "b"}, [5], [{"a": "b"}]),
    ],
    ids=str,
)
def test_what_is_no_alias_is_refused(given: object) -> None:
    """The message says how one looks."""
    with pytest.raises(ValueError, match=r"alias|must be|weight|option"):
        aliases(given)
