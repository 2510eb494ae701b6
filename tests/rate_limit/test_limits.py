"""The grammar of limits and of budgets."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.rate_limit.budgets import budget_text, budgets
from llmproxy.rate_limit.limits import address_subject, limit_text, limits
from llmproxy.records import Budget, Limit

NAMES = st.text(string.ascii_letters + string.digits + "-_./: é", min_size=1, max_size=20).map(
    lambda name: "x" + " ".join(name.split())
)
WHOLE = st.integers(1, 10**15).map(float)
MONEY = st.integers(1, 10**12).map(lambda micros: micros / 1e6)
PER: Any = st.one_of(
    st.tuples(st.sampled_from(["key", "team", "tier", "model", "ip"]), st.none()),
    st.tuples(st.sampled_from(["team", "tier", "model"]), NAMES),
    st.tuples(st.just("ip"), st.ip_addresses().map(lambda each: address_subject(str(each)))),
)
PERIODS = st.builds(
    lambda count, length: float(count * length),
    st.integers(1, 300),
    st.sampled_from([1, 60, 3600, 86_400]),
)
LIMITS = st.builds(
    lambda amount, unit, period, per: Limit(
        amount, unit, period if unit != "concurrent" else 0.0, *per
    ),
    WHOLE,
    st.sampled_from(["req", "tok", "concurrent"]),
    PERIODS,
    PER,
)
BUDGETS = st.builds(
    lambda unit, whole, money, window, per, kind: Budget(
        money if unit == "usd" else whole, unit, window, per=per[0], of=per[1], kind=kind
    ),
    st.sampled_from(["usd", "tok"]),
    WHOLE,
    MONEY,
    st.sampled_from(["hour", "day", "month", "total"]),
    PER,
    st.sampled_from(["hard", "soft", "cut"]),
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("60 req/min", Limit(60, "req", 60)),
        ("60req/min", Limit(60, "req", 60)),
        ("60 REQ / Min", Limit(60, "req", 60)),
        ("1e6 tok/day", Limit(1_000_000, "tok", 86_400)),
        ("10 req/5min", Limit(10, "req", 300)),
        ("3 req/s", Limit(3, "req", 1)),
        ("8 concurrent", Limit(8, "concurrent")),
        ("60 req/min per team", Limit(60, "req", 60, "team")),
        ("60 req/min per team=blue", Limit(60, "req", 60, "team", "blue")),
        ("2 concurrent per model=qwen2.5:7b", Limit(2, "concurrent", 0, "model", "qwen2.5:7b")),
        ("5 req/h per ip=::ffff:192.0.2.1", Limit(5, "req", 3600, "ip", "192.0.2.1")),
        ("5 req/h per ip=2001:db8::7", Limit(5, "req", 3600, "ip", "2001:db8::/64")),
    ],
)
def test_what_a_limit_means(text: str, meant: Limit) -> None:
    """Amount, unit, time, and for whom."""
    assert limits(text) == (meant,)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10 usd/day", Budget(10, "usd", "day")),
        ("0.5 usd/hour", Budget(0.5, "usd", "hour")),
        ("500 usd", Budget(500, "usd", "total")),
        ("1e6 tok/month per team", Budget(1_000_000, "tok", "month", "team")),
        ("soft:5 usd/day", Budget(5, "usd", "day", kind="soft")),
        ("cut:5 usd/day per team=a b", Budget(5, "usd", "day", "team", "a b", "cut")),
    ],
)
def test_what_a_budget_means(text: str, meant: Budget) -> None:
    """Amount, unit, window, for whom, and what happens when it is spent."""
    assert budgets(text) == (meant,)


@given(st.lists(LIMITS, max_size=4, unique_by=lambda each: (each.unit, each.period, each.per)))
def test_limits_come_back_from_their_text(made: list[Limit]) -> None:
    """What is written back means the same, in one text, in a list and inside an option."""
    texts = [limit_text(each) for each in made]

    assert limits(texts) == tuple(made)
    assert limits(", ".join(texts)) == tuple(made)
    assert limits(" | ".join(texts)) == tuple(made)


@given(st.lists(BUDGETS, max_size=4, unique_by=lambda each: (each.unit, each.window, each.per)))
def test_budgets_come_back_from_their_text(made: list[Budget]) -> None:
    """The same for budgets; money keeps its millionths."""
    texts = [budget_text(each) for each in made]

    assert budgets(texts) == tuple(made)
    assert budgets(", ".join(texts)) == tuple(made)


def test_nothing_given_is_nothing_limited() -> None:
    """An empty text has no entries."""
    assert limits("") == limits(None) == limits([]) == limits(" , ") == ()
    assert budgets("") == budgets(None) == ()


BAD_LIMITS = [
    *("60", "req/min", "60 req", "60 req/", "60 foo/min", "60 req/fortnight", "60 req/min per"),
    *("0 req/min", "0 concurrent", "-1 req/min", "nan req/min", "inf req/min", "1e99 req/min"),
    *("1.5 req/min", "0.5 concurrent", "60 req/0min", "60 req/9999d", "60 req/min per planet"),
    *(
        "60 req/min per key=abc",
        "60 req/min per ip=blue",
        "8 concurrent/min",
        "\N{SUPERSCRIPT TWO} req/min",
    ),
    *("60 req/min per team=a\x00b", "10 usd/day"),
    *("60 req/min, 50 req/min", "60 req/min|30 req/60s"),
]


@pytest.mark.parametrize("text", BAD_LIMITS)
def test_what_is_no_limit_is_refused(text: str) -> None:
    """The complaint says which entry it is and never repeats it: it may be a key gone astray."""
    with pytest.raises(ValueError, match=r"^entry [12]") as refused:
        limits(text)

    assert text not in str(refused.value).replace("60 req/min", "")


@pytest.mark.parametrize(
    "text",
    [
        *("10", "10 usd/week", "0 usd/day", "0.5 tok/day", "warm:5 usd/day", "5 req/day"),
        *("5 usd/1day", "10 usd/day per key=x", "10 usd/day, 20 usd/day", "-1 usd", "1e99 usd"),
    ],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    """The same for budgets."""
    with pytest.raises(ValueError, match=r"^entry [12]"):
        budgets(text)


@pytest.mark.parametrize("given", [5, 1.5, True, {"a": 1}, [5], object()])
def test_only_texts_are_read(given: object) -> None:
    """Whatever else stands in a file of settings is refused and does not fail."""
    with pytest.raises(ValueError, match="must be"):
        limits(given)
    with pytest.raises(ValueError, match="must be"):
        budgets(given)


@given(st.text(max_size=60))
def test_no_text_makes_a_grammar_fail(text: str) -> None:
    """It is read or refused."""
    for grammar in (limits, budgets):
        try:
            grammar(text)
        except ValueError as refused:
            assert str(refused)


def test_a_house_full_of_addresses_is_one_caller() -> None:
    """Whoever has one address of IPv6 has 2^64; a mapped IPv4 address is that address."""
    assert address_subject("2001:db8::1") == address_subject("2001:db8::ffff:1")
    assert address_subject("2001:db8:0:1::1") != address_subject("2001:db8::1")
    assert address_subject("::ffff:192.0.2.1") == address_subject("192.0.2.1") == "192.0.2.1"
    assert address_subject("fe80::1%eth0") == "fe80::/64"
