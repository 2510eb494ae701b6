"""What tokens cost, and since when."""

import string
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.metering.prices import Price, PriceList, price_text, prices
from llmproxy.records import Usage

MILLION = 1_000_000


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def found(text: object, model: str | None, day: str = "2026-06-01") -> Price | None:
    return prices(text).price(model, at(day))


def test_in_out_and_cached_are_per_million_tokens() -> None:
    """Cached tokens are part of the prompt and have their own price, or else the prompt's."""
    with_cache, without = prices("a=2:10:0.5,b=2:10").prices
    usage = Usage(prompt=3 * MILLION, completion=MILLION, cached=MILLION)

    assert with_cache.cost(usage) == 2 * 2 + 0.5 + 10
    assert without.cost(usage) == 3 * 2 + 10


def test_a_cost_is_never_negative() -> None:
    """Whatever a model server reports."""
    price = Price("a", 2, 10, 0.5)

    assert price.cost(Usage(-5, -5, cached=-5)) == 0
    assert price.cost(Usage(5, 0, cached=10**9)) == price.cost(Usage(5, 0, cached=5))


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_most_that_tokens_may_cost_is_no_less_than_they_do(
    prompt: int, completion: int, cached: int
) -> None:
    """Also where what is cached costs more than what is not."""
    for price in (Price("a", 2, 10), Price("a", 2, 10, 0.5), Price("a", 2, 10, 7)):
        cost = price.cost(Usage(prompt, completion, cached=cached))

        assert cost <= price.most(prompt, completion) * (1 + 1e-12)


def test_a_price_holds_from_its_day_on() -> None:
    """From midnight UTC of that day; before the first there is none."""
    text = "a=1:1;since=2026-01-01,a=2:2;since=2026-03-01"

    assert found(text, "a", "2025-12-31T23:59:59") is None
    for day, dollars in [("2026-01-01", 1), ("2026-02-28T23:59:59", 1), ("2026-03-01", 2)]:
        price = found(text, "a", day)
        assert price is not None
        assert price.prompt == dollars


@pytest.mark.parametrize(
    ("model", "dollars"),
    [("llama-3.3-70b", 4), ("llama-3.1-8b", 3), ("mistral", 1), ("llama-3", 2), (None, 1)],
)
def test_the_exact_name_wins_then_the_longest_glob(model: str | None, dollars: int) -> None:
    """In whatever order they stand."""
    text = "*=1:1,llama-3*=3:3,llama-*=9:9,llama-3=2:2,llama-3.3-70?=4:4"

    price = found(text, model)

    assert price is not None
    assert price.prompt == dollars


def test_until_the_exact_price_holds_the_glob_does() -> None:
    """A name with a day to come is not yet another model."""
    text = "a*=1:1,abc=2:2;since=2026-03-01"

    early, late = found(text, "abc", "2026-01-01"), found(text, "abc", "2026-03-01")

    assert early is not None
    assert late is not None
    assert (early.prompt, late.prompt) == (1, 2)


def test_names_of_models_may_hold_anything() -> None:
    """Colons, slashes, brackets, an equals sign; nothing of it is an expression."""
    for model in ("qwen2.5:7b-q4_K_M", "meta-llama/Llama-3.3", "a[b]c", "x=y", "a.c+(b)"):
        assert found(f"{model}=1:2", model) is not None
    assert found("a.c=1:2", "abc") is None
    assert found("a[bc]=1:2", "ab") is None


def test_an_alias_costs_what_its_dearest_model_does() -> None:
    """Nobody knows yet which one it will be; one of them may have the alias's own name."""
    known = prices("small=1:1,large=1:9,fast=5:1").prices
    listed = PriceList(known, {"fast": ("fast", "large", "unknown"), "none": ("unknown",)})

    assert listed.price("fast", at("2026-06-01")) == listed.price("large", at("2026-06-01"))
    assert listed.price("none", at("2026-06-01")) is None
    assert listed.price("small", at("2026-06-01")) == known[0]


def test_the_names_that_callers_invent_are_not_kept_for_ever() -> None:
    """A thousand and no more, and none that is long."""
    listed = prices("*=1:1")
    for number in range(3000):
        listed.price(f"model-{number}", 0)
    listed.price("x" * 1_000_000, 0)

    assert len(listed._found) <= 1024
    assert max(map(len, listed._found)) <= 200


MODELS = st.text(string.ascii_letters + string.digits + "-_./:*?=", min_size=1, max_size=20)
DOLLARS = st.integers(0, 10**9).map(lambda nano: nano / 1e6)
PRICES = st.builds(
    Price,
    MODELS,
    DOLLARS,
    DOLLARS,
    st.none() | DOLLARS,
    st.just(date.min) | st.dates(date(2020, 1, 1), date(2030, 1, 1)),
)


@given(st.lists(PRICES, max_size=5, unique_by=lambda price: (price.model, price.since)))
def test_prices_come_back_from_their_text(made: list[Price]) -> None:
    """What is written back means the same."""
    texts = [price_text(price) for price in made]

    assert prices(texts).prices == tuple(made)
    assert prices(",".join(texts)).prices == tuple(made)


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a=1", "a=1:2:3:4", "=1:2", "a=-1:2", "a=1:x", "a=nan:1", "a=1e9:1", "a=9999999:1"),
        *("a=1:2;until=1", "a=1:2;since=tomorrow", "a=1:2;since=2026-13-01", "a=1:2,a=3:4"),
        *("a=1:2;since=20260101", "a\x00=1:2", "x" * 201 + "=1:2", "a=1:2;since=2026-01-01;b=c"),
    ],
)
def test_what_is_no_price_is_refused(text: str) -> None:
    """The complaint says which entry it is."""
    with pytest.raises(ValueError, match=r"^entry [12]"):
        prices(text)


@pytest.mark.parametrize(
    "given", [5, True, [5], [["a", 1]], {"a": 5}, {"a": {"in": True, "out": 1}}]
)
def test_what_is_no_price_list_is_refused(given: object) -> None:
    """Whatever stands in a file."""
    with pytest.raises(ValueError, match=r"must|entry"):
        prices(given)


def test_nothing_given_is_no_price() -> None:
    """And then everything costs nothing."""
    assert prices(None).prices == prices("").prices == ()
    assert PriceList().price("a", 0) is None


TOML = """
"gpt-4o" = "2.5:10:1.25"
"llama-*" = { in = 0.1, out = 0.2 }
mistral = ["1:1", { in = 2, out = 2, cached = 0.5, since = 2026-01-01 }, "3:3;since=2027-01-01"]
"""
LINES = """# per million tokens
gpt-4o=2.5:10:1.25

llama-*=0.1:0.2,
mistral=1:1
  mistral=2:2:0.5;since=2026-01-01
mistral=3:3;since=2027-01-01
"""
JSON = """{"gpt-4o": "2.5:10:1.25", "llama-*": {"in": 0.1, "out": 0.2}, "mistral":
["1:1", {"in": 2, "out": 2, "cached": 0.5, "since": "2026-01-01"}, "3:3;since=2027-01-01"]}"""


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.toml", TOML), ("p.json", JSON), ("prices", JSON), ("prices", LINES), ("p.txt", LINES)],
)
def test_a_file_holds_the_same(tmp_path: Path, name: str, content: str) -> None:
    """TOML or JSON: texts, tables, and lists of both where the price has changed; or lines."""
    path = tmp_path / name
    path.write_text(content)

    assert prices(f"file:{path}").prices == (
        Price("gpt-4o", 2.5, 10, 1.25),
        Price("llama-*", 0.1, 0.2),
        Price("mistral", 1, 1),
        Price("mistral", 2, 2, 0.5, date(2026, 1, 1)),
        Price("mistral", 3, 3, None, date(2027, 1, 1)),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("p.toml", b"a = = b"),
            ("p.json", b"{"),
            ("p.toml", b"\xff"),
            ("p.json", b"5"),
            ("", b""),
        ),
        *(("prices", b"{"), ("prices", b"\xff")),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """A missing one too; the complaint does not repeat what is in it."""
    path = tmp_path / (name or "missing.json")
    if name:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=r"file of prices|must be"):
        prices(f"file:{path}")
