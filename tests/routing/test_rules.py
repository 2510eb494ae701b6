"""Rules: which model and which servers a request is for."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmproxy.routing.rules import (
    MOST_SEARCHED,
    Condition,
    Decision,
    Facts,
    Rule,
    Rules,
    rule_text,
    rules,
)

WITH_TOOLS = b'{"tools":[{"type":"function"}]}'
WITH_IMAGE = b'{"messages":[{"content":[{"type":"image_url"}]}]}'
ASKED = Facts(
    model="llama-70b",
    tier="gold",
    team="blue",
    tags=frozenset({"beta", "eu"}),
    prompt_bytes=4001,
    body=b'{"model":"llama-70b","prompt":"An Invoice, please"}',
)

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
CONDITIONS = st.one_of(
    st.builds(Condition, st.sampled_from(["tier", "team", "tag", "model"]), NAMES),
    st.builds(Condition, st.just("long"), st.integers(1, 10**9).map(str)),
    st.builds(Condition, st.sampled_from(["has_images", "has_tools", "over_budget"])),
)
REGEXES = st.from_regex(r"[a-z+=;|:#~.]{1,8}", fullmatch=True).map(lambda text: f"[{text}]")
RULES = st.builds(
    lambda first, regex, model, tags: Rule(
        (*first, *([Condition("prompt", regex)] if regex else ())), model, tags
    ),
    st.lists(CONDITIONS, min_size=1, max_size=3),
    st.none() | REGEXES,
    NAMES,
    st.frozensets(NAMES, max_size=3),
)


def decided(text: object, facts: Facts = ASKED) -> Decision:
    return Rules(rules(text)).decide(facts)


@pytest.mark.parametrize(
    ("condition", "changed"),
    [
        pytest.param("tier:gold", {"tier": "silver"}, id="tier"),
        pytest.param("tier:gold", {"tier": None}, id="no_tier"),
        pytest.param("team:blue", {"team": "red"}, id="team"),
        pytest.param("tag:eu", {"tags": frozenset({"us"})}, id="tag"),
        pytest.param("model:llama-70b", {"model": "llama-70bx"}, id="model"),
        pytest.param("model:llama-*", {"model": "qwen"}, id="glob"),
        pytest.param("model:*", {"model": None}, id="no_model"),
        pytest.param("long:1000", {"prompt_bytes": 4000}, id="long"),
        pytest.param("prompt~(?i)invoice", {"body": b"a letter"}, id="regex"),
        pytest.param("prompt~Inv.+ce, p{1}", {"body": b"a letter"}, id="regex_with_everything"),
        pytest.param("tier:gold+tag:eu+prompt~Inv", {"tier": "silver"}, id="all_must_hold"),
    ],
)
def test_a_rule_counts_when_its_conditions_hold(condition: str, changed: dict[str, Any]) -> None:
    """And only then."""
    rule = {condition: "other"}

    assert decided(rule).model == "other"
    assert decided(rule, replace(ASKED, **changed)) == Decision()


@pytest.mark.parametrize(
    ("condition", "changed"),
    [
        ("over_budget", {"over_budget": True}),
        ("has_tools", {"body": WITH_TOOLS}),
        ("has_images", {"body": WITH_IMAGE}),
    ],
)
def test_a_condition_may_be_one_word(condition: str, changed: dict[str, Any]) -> None:
    """What is not so most of the time."""
    assert decided(f"{condition}=other") == Decision()
    assert decided(f"{condition}=other", replace(ASKED, **changed)).model == "other"


def test_the_first_rule_decides_on_the_model_and_the_first_on_the_servers() -> None:
    """One that says nothing of the servers leaves them to a later one."""
    written = "tier:silver=a,model:llama*=b,tier:gold=c;#fast|new,team:blue=#slow"

    assert decided(written) == Decision("b", frozenset({"fast", "new"}))
    assert decided(written, replace(ASKED, tier=None)) == Decision("b", frozenset({"slow"}))
    assert decided("tier:gold=#fast,team:blue=b;#slow") == Decision("b", frozenset({"fast"}))
    assert decided(written, Facts()) == Decision()


def test_no_rule_sees_what_another_has_decided() -> None:
    """Conditions are about what was asked for."""
    assert decided("model:llama-70b=qwen,model:qwen=#q,model:llama-*=#l") == Decision(
        "qwen", frozenset({"l"})
    )


def test_the_body_is_looked_into_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all for a rule that does not hold anyway, or that could add nothing."""
    looked: list[bytes] = []

    def has_tools(body: bytes) -> bool:
        looked.append(body)
        return True

    monkeypatch.setattr("llmproxy.routing.rules.has_tools", has_tools)

    decided("has_tools+tier:silver=a,tier:gold=b,has_tools=c")
    assert not looked
    assert decided("has_tools+tier:gold=a").model == "a"
    assert looked == [ASKED.body]


def test_only_the_beginning_of_a_body_is_searched() -> None:
    """The regex is the operator's, the body is anybody's."""
    before, behind = b"x" * (MOST_SEARCHED - 6) + b"needle", b"x" * (MOST_SEARCHED - 5) + b"needle"

    assert decided("prompt~needle=a", replace(ASKED, body=before)).model == "a"
    assert decided("prompt~needle=a", replace(ASKED, body=behind)) == Decision()


def test_the_words_of_a_prompt_are_not_its_content() -> None:
    """Whoever writes about tools has none."""
    text = json.dumps({"messages": [{"content": '"tools":[1] "image_url"'}]}).encode()

    assert decided("has_tools=a,has_images=b", replace(ASKED, body=text)) == Decision()


@given(RULES)
@example(Rule((Condition("prompt", "a=b+c;d"),), "m", frozenset({"t"})))
def test_a_rule_that_is_shown_can_be_read_again(rule: Rule) -> None:
    """A regex may have in it what separates everything else."""
    assert rules([rule_text(rule)]) == (rule,)


def test_lists_and_tables_keep_the_order() -> None:
    """In them a comma may be part of a regex."""
    written = ["tier:gold=#gold|silver", "long:8000+has_images=long-vl;#big", "prompt~a{1,2}=m"]
    table = {
        "tier:gold": "#silver|gold",
        "has_images": "vl",
        "prompt~a{1,2}": "m",
    }

    assert [rule_text(rule) for rule in rules(written)] == [
        "tier:gold=#gold|silver",
        "long:8000+has_images=long-vl;#big",
        "prompt~a{1,2}=m",
    ]
    assert [rule_text(rule) for rule in rules(table)] == [
        "tier:gold=#gold|silver",
        "has_images=vl",
        "prompt~a{1,2}=m",
    ]
    assert rules("tier:gold=a, ,has_tools=b,") == rules({"tier:gold": "a", "has_tools": "b"})
    assert rules(None) == rules("") == ()
    assert Rules(rules("tier:gold=a"))
    assert not Rules()


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        *((text, "condition") for text in ("tier:gold", "=a", "gold=a", "tier:=a", "tier:a+=b")),
        *((text, "condition") for text in ("colour:red=a", "has_image=a", "+tier:a=b", "tier=b")),
        *((text, "long:") for text in ("long:=a", "long:x=a", "long:0=a", "long:-1=a")),
        *((text, "long:") for text in ("long:99999999999=a", "long:2000000000=a", "long:٣=a")),
        *((text, "cannot be compiled") for text in ("prompt~(=a", "prompt~[a=b", "prompt~*=a")),
        *((text, "cannot be compiled") for text in ("prompt~[[a]=b", "prompt~a{99999999999}=b")),
        *((text, "regex") for text in ("prompt~=a", "prompt~" + "x" * 1001 + "=a")),
        *((text, "tags are") for text in ("tier:a=#", "tier:a=#b|", "tier:a=#b c", "tier:a=##b")),
        *((text, "at most") for text in ("tier:a=b;c", "tier:a=#b;#c")),
        *(
            (text, "condition")
            for text in ("tier:a=", "tier:a=;b", "tier:a=b;", "tier:a=" + "x" * 257)
        ),
        *((value, "condition") for value in (5, [5], {"tier:a": 5}, {"tier:a": ["b"]}, {5: "a"})),
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused(given: object, cure: str) -> None:
    """The message says what is allowed."""
    with pytest.raises(ValueError, match=cure):
        rules(given)
