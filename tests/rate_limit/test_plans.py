"""Which meters a request meets."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limits import limits
from llmproxy.rate_limit.plans import MOST_PLANS, Plan, Plans, share
from llmproxy.records import Principal
from llmproxy.store.interface import Kind, Meter

ANNA = Principal(id="key_1", name="anna", team="blue", tier="gold")
BERT = Principal(id="key_2", name="bert", team="blue", tier="free")
CARL = Principal(id="key_3", name="carl")
HERE = "192.0.2.1"


def plans(text: str = "", budget: str = "", workers: int = 1, most: int = MOST_PLANS) -> Plans:
    return Plans(limits(text), budgets(budget), workers=workers, most=most)


def plan(
    made: Plans,
    principal: Principal | None = ANNA,
    address: str | None = HERE,
    model: str | None = "llama",
) -> Plan:
    return made.find(principal, address, model)[0]


def names(found: Plan) -> list[str]:
    return [line.meter.name for line in found.lines]


def texts(found: Plan) -> list[str]:
    return [line.text for line in found.lines]


@pytest.mark.parametrize(
    ("per", "shared"),
    [("key", []), ("team", [BERT]), ("tier", []), ("model", [BERT, CARL]), ("ip", [BERT, CARL])],
)
def test_who_shares_a_meter(per: str, shared: list[Principal]) -> None:
    """Everybody of the same team, tier, model or address; a key is alone."""
    made = plans(f"5 req/min per {per}")
    mine = names(plan(made, ANNA))

    for other in (BERT, CARL):
        assert (names(plan(made, other)) == mine) is (other in shared)


def test_what_is_for_one_is_not_for_others() -> None:
    """`per team=blue` counts for the team blue, `per model=llama` for that model."""
    made = plans("5 req/min per team=blue, 6 req/min per model=llama, 7 req/h per ip=192.0.2.1")

    assert len(plan(made, ANNA).lines) == 3
    assert texts(plan(made, CARL)) == [
        "6 req/min per model=llama",
        "7 req/hour per ip=192.0.2.1",
    ]
    assert texts(plan(made, CARL, "192.0.2.9", "other")) == []


def test_who_has_no_team_is_counted_alone() -> None:
    """A limit is not skipped because a key says less of itself."""
    made = plans("5 req/min per team, 5 req/min per tier")
    first = plan(made, CARL)
    second = plan(made, replace(CARL, id="key_4"))

    assert len(first.lines) == 2
    assert not set(names(first)) & set(names(second))


def test_where_nobody_is_asked_the_address_stands_for_the_key() -> None:
    """And a whole network of IPv6 for one address."""
    made = plans("5 req/min")

    assert names(plan(made, None, "192.0.2.1")) != names(plan(made, None, "192.0.2.2"))
    assert names(plan(made, None, "2001:db8::1")) == names(plan(made, None, "2001:db8::2"))
    assert len(plan(made, None, None).lines) == 1
    assert len(plan(made, None, "not an address").lines) == 1


def test_a_keys_own_limits_take_the_place_of_everybodys() -> None:
    """Those per key. What protects a model, a team or the door holds for this key too."""
    own = replace(ANNA, limits=limits("500 req/min"), budgets=budgets("9 usd/day"))
    made = plans(
        "5 req/min, 100 tok/min, 2 concurrent per model=llama, 50 req/min per ip", "1 usd/day"
    )

    assert texts(plan(made, own)) == [
        "500 req/min per key",
        "2 concurrent per model=llama",
        "50 req/min per ip",
        "9 usd/day per key",
    ]
    assert len(plan(made, ANNA).lines) == 5


def test_a_keys_own_limits_per_model_are_its_own() -> None:
    """Two keys with the same option do not use up each other's."""
    mine = replace(ANNA, limits=limits("5 req/min per model, 5 req/min per ip"))
    other = replace(BERT, limits=mine.limits)
    made = plans()

    assert not set(names(plan(made, mine))) & set(names(plan(made, other)))
    assert names(plan(made, mine, model="a")) != names(plan(made, mine, model="b"))


def test_nothing_is_counted_twice() -> None:
    """A team's limit that stands with the key and with everybody is one meter: the key's."""
    own = replace(ANNA, limits=limits("9 req/min per team"))

    assert texts(plan(plans("5 req/min per team"), own)) == ["9 req/min per team"]


def test_only_tokens_are_a_guess() -> None:
    """What dies with a worker comes back; a request that was let in was one."""
    found = plan(plans("5 req/min, 100 tok/min, 2 concurrent", "10 tok/day", workers=4))

    assert [line.meter.provisional for line in found.lines] == [False, True, False, False]


def test_changing_an_amount_does_not_begin_anew() -> None:
    """Whoever raises a budget in the middle of a month keeps what is spent of it."""
    before, after = plans("5 req/min", "1 usd/day"), plans("9 req/min", "20 usd/day")

    assert names(plan(before)) == names(plan(after))


def test_soft_and_hard_budgets_are_counted_apart() -> None:
    """Or each token would be counted twice."""
    found = plan(plans("", "soft:5 usd/day, 10 usd/day, cut:10 usd/day, 10 tok/day, 10 usd/hour"))

    assert len(set(names(found))) == 5


NASTY = st.text("ab:{}*%=\x00é", min_size=1, max_size=6) | st.just("x" * 5000)
SUBJECTS = st.builds(
    lambda id, team, tier: Principal(id=id, name="n", team=team, tier=tier),
    NASTY,
    st.none() | NASTY,
    st.none() | NASTY,
)


@given(SUBJECTS, SUBJECTS, NASTY, NASTY)
def test_two_subjects_never_share_a_meter(
    one: Principal, other: Principal, model: str, another: str
) -> None:
    """Whatever their names are made of, and however long they are."""
    made = plans("5 req/min, 5 req/min per team, 5 req/min per tier, 5 req/min per model")
    mine = names(plan(made, one, model=model))
    theirs = names(plan(made, other, model=another))

    assert (mine[0] == theirs[0]) is (one.id == other.id)
    if one.team is not None or other.team is not None:
        assert (mine[1] == theirs[1]) is (one.team == other.team)
    assert (mine[3] == theirs[3]) is (model == another)
    assert len(set(mine)) == 4
    assert all(len(name) < 500 for name in mine)


def test_a_digest_cannot_be_asked_for() -> None:
    """A model that is called like the digest of a long name is another one."""
    made = plans("5 req/min per model")
    digest = names(plan(made, model="x" * 5000))[0].partition("sha256=")[2]

    assert digest
    assert names(plan(made, model=f"sha256={digest}")) != names(plan(made, model="x" * 5000))


def test_plans_are_made_once_and_kept_bounded() -> None:
    """The same caller finds the same plan; what makes no difference makes no new one."""
    made = plans("5 req/min per team", most=5)
    first = plan(made)

    assert plan(made, address="192.0.2.9", model="other") is first
    for number in range(20):
        plan(made, replace(ANNA, id=f"key_{number}"))
    assert len(made._ready) == 5
    assert plan(made) is not first
    assert names(plan(made)) == names(first)


def test_long_names_are_not_kept() -> None:
    """Callers may ask for a model with a name of a million letters."""
    made = plans("5 req/min per model")
    plan(made, model="x" * 1_000_000)

    assert not made._ready


def test_a_changed_key_gets_a_new_plan() -> None:
    """Its record is another one, also where its identity in memory is used again."""
    made = plans("5 req/min")
    for number in range(200):
        changed = Principal(id="key_1", name="anna", limits=limits(f"{number + 1} req/min"))
        assert texts(plan(made, changed)) == [f"{number + 1} req/min per key"]


def test_a_list_of_models_counts_as_a_request_only() -> None:
    """It takes no tokens, so it meets neither their limits nor a budget."""
    _, requests = plans("5 req/min, 100 tok/min, 2 concurrent", "1 usd/day").find(ANNA, HERE, None)

    assert texts(requests) == ["5 req/min per key", "2 concurrent per key"]
    assert not requests.counts
    assert not requests.hard


@pytest.mark.parametrize(
    ("limit", "workers"), list(product([1.0, 3.0, 8.0, 60.0, 1e6], [1, 2, 4, 64]))
)
def test_the_shares_are_no_more_than_the_whole(limit: float, workers: int) -> None:
    """In pace never more; at once never more, but one each."""
    rate = share(Meter("r", Kind.RATE, limit, period=60), workers)
    held = share(Meter("h", Kind.HELD, limit), workers)
    spent = share(Meter("s", Kind.SPENT, limit), workers)

    assert rate.limit / rate.period * workers == pytest.approx(limit / 60)
    assert rate.limit * workers <= max(limit, workers) * (1 + 1e-9)
    assert held.limit * workers <= max(limit, workers)
    assert min(rate.limit, held.limit) >= 1
    assert spent.limit * workers == pytest.approx(limit)


def test_what_every_request_of_a_caller_meets() -> None:
    """Its own limits and those of its team and tier; a model or an address it may change."""
    text = ", ".join(f"{n} req/min per {per}" for n, per in enumerate(("key", "team", "tier"), 1))
    made = plans(
        f"{text}, 5 req/min per model, 6 req/min per ip, 7 req/h per model=llama",
        "9 tok per key, 8 tok per ip",
    )
    own = replace(CARL, limits=limits("3 req/h, 4 req/h per model"))

    lines = made.everywhere(ANNA)

    assert [line.meter for line in lines] == [
        line.meter
        for line in plan(made).lines
        if not line.text.endswith(("per model", "per ip", "=llama"))
    ]
    assert [line.text for line in lines] == [
        "1 req/min per key",
        "2 req/min per team",
        "3 req/min per tier",
        "9 tok per key",
    ]
    assert "3 req/hour per key" in [line.text for line in made.everywhere(own)]
    assert not any("model" in line.text for line in made.everywhere(own))
