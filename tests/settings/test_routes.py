"""The settings of routing: the same grammars in text, TOML, JSON and Python."""

import json
import pickle
from pathlib import Path

import pytest

from llmproxy.routing.aliases import aliases
from llmproxy.routing.choosing import Choosing, choosing
from llmproxy.routing.fallbacks import fallbacks
from llmproxy.routing.rules import rules
from llmproxy.settings import Settings, SettingsError, load

LAYER = {"LLMPROXY_MIDDLEWARE": "auth,rate_limit,routing"}
TEXT = {
    "LLMPROXY_ROUTING": "latency,llama-*=prefix",
    "LLMPROXY_ALIASES": "gpt-4o=llama-70b,fast=a:80|b:20",
    "LLMPROXY_FALLBACKS": "big=medium|small,context:big=long",
    "LLMPROXY_RULES": "tier:gold=#gold,long:8000+has_tools=big",
    "LLMPROXY_RETRIES": "5",
    "LLMPROXY_RESCUE": "fallback",
    "LLMPROXY_FIRST_TOKEN_LIMIT": "2.5",
}
IN_JSON = TEXT | {
    "LLMPROXY_ROUTING": '{"*": "latency", "llama-*": "prefix"}',
    "LLMPROXY_ALIASES": '{"gpt-4o": "llama-70b", "fast": ["a:80", "b:20"]}',
    "LLMPROXY_FALLBACKS": '["big=medium|small", "context:big=long"]',
    "LLMPROXY_RULES": '["tier:gold=#gold", "long:8000+has_tools=big"]',
}
TOML = """
middleware = ["auth", "rate_limit", "routing"]
retries = 5
rescue = "fallback"
first_token_limit = 2.5
[routing]
"*" = "latency"
"llama-*" = "prefix"
[aliases]
gpt-4o = "llama-70b"
fast = ["a:80", "b:20"]
[fallbacks]
big = ["medium", "small"]
"context:big" = "long"
[rules]
"tier:gold" = "#gold"
"long:8000+has_tools" = "big"
"""
PYTHON = {
    "middleware": ("auth", "rate_limit", "routing"),
    "routing": choosing("latency,llama-*=prefix"),
    "aliases": aliases("gpt-4o=llama-70b,fast=a:80|b:20"),
    "fallbacks": list(fallbacks("big=medium|small,context:big=long")),
    "rules": rules("tier:gold=#gold,long:8000+has_tools=big"),
    "retries": 5,
    "rescue": "fallback",
    "first_token_limit": 2.5,
}
NAMES = ("routing", "aliases", "fallbacks", "rules", "retries", "rescue", "first_token_limit")


def told(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in NAMES}


def test_whatever_the_form_it_is_the_same(tmp_path: Path) -> None:
    """Text, JSON in text, TOML, and records made in Python."""
    file = tmp_path / "llmproxy.toml"
    file.write_text(TOML)
    expected = told(Settings.load(TEXT | LAYER))

    assert told(Settings.load(IN_JSON | LAYER)) == expected
    assert told(Settings.load({"LLMPROXY_CONFIG": str(file)})) == expected
    assert told(Settings(**PYTHON)) == expected
    assert expected["rules"] == rules(TEXT["LLMPROXY_RULES"])


def test_what_is_shown_can_be_set_again() -> None:
    """`llmproxy config` writes the short form."""
    loaded = load(Settings, TEXT | LAYER)
    shown = {origin.variable: origin.value for origin in loaded.origins}

    assert {name: shown[name] for name in TEXT} == TEXT
    assert json.loads(loaded.settings.model_dump_json())["aliases"] == [
        "gpt-4o=llama-70b",
        "fast=a:80|b:20",
    ]
    assert pickle.loads(pickle.dumps(loaded.settings)) == loaded.settings


def test_nothing_has_to_be_said() -> None:
    """The defaults are two retries, a rescue by the same model, and no limit."""
    assert told(Settings()) == {
        "routing": Choosing("least_load", ()),
        "aliases": (),
        "fallbacks": (),
        "rules": (),
        "retries": 2,
        "rescue": "same_model",
        "first_token_limit": 0.0,
    }


def faults_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("environ", "named", "cure"),
    [
        pytest.param({"ROUTING": "random"}, "ROUTING", "least_load, round", id="no_policy"),
        pytest.param({"ROUTING": "{"}, "ROUTING", "not valid JSON", id="half_a_table"),
        pytest.param({"ALIASES": "a=a"}, "ALIASES", "stands for itself", id="alias_of_itself"),
        pytest.param({"ALIASES": "a=b,b=c"}, "ALIASES", "another alias", id="alias_of_an_alias"),
        pytest.param(
            {"ALIASES": "a=b|c;choose=cheapest"}, "ALIASES", "LLMPROXY_PRICES", id="no_prices"
        ),
        pytest.param({"FALLBACKS": "a=b|a"}, "FALLBACKS", "back to itself", id="circle"),
        pytest.param(
            {"FALLBACKS": "a=b", "ALIASES": "a=c"}, "FALLBACKS", "a is an alias", id="never_begins"
        ),
        pytest.param({"RULES": "tier:gold"}, "RULES", "condition", id="no_target"),
        pytest.param({"RULES": "prompt~(=a"}, "RULES", "cannot be compiled", id="no_regex"),
        pytest.param({"RETRIES": "11"}, "RETRIES", "from 0 to 10", id="too_many_retries"),
        pytest.param({"RETRIES": "-1"}, "RETRIES", "from 0 to 10", id="negative_retries"),
        pytest.param({"RESCUE": "on"}, "RESCUE", "off, same_model, fallback", id="no_rescue"),
        pytest.param(
            {"FIRST_TOKEN_LIMIT": "5s"}, "FIRST_TOKEN_LIMIT", "seconds", id="limit_with_a_unit"
        ),
        pytest.param(
            {"FIRST_TOKEN_LIMIT": "120"},
            "FIRST_TOKEN_LIMIT",
            "less than LLMPROXY_TIMEOUT_FIRST_BYTE=120",
            id="limit_after_the_end",
        ),
        pytest.param(
            {"FIRST_TOKEN_LIMIT": "5", "TIMEOUT_FIRST_BYTE": "3"},
            "FIRST_TOKEN_LIMIT",
            "less than LLMPROXY_TIMEOUT_FIRST_BYTE=3",
            id="limit_after_a_shorter_end",
        ),
    ],
)
def test_what_cannot_be_done_stops_the_start(
    environ: dict[str, str], named: str, cure: str
) -> None:
    """With the name and the cure."""
    [line] = faults_of({f"LLMPROXY_{name}": value for name, value in environ.items()} | LAYER)

    assert line.startswith(f"LLMPROXY_{named}")
    assert cure in line


@pytest.mark.parametrize(
    "environ",
    [
        {"ALIASES": "a=b|c;choose=cheapest", "PRICES": "b=1:2"},
        {"FALLBACKS": "a=c", "ALIASES": "c=b"},
        {"FIRST_TOKEN_LIMIT": "200", "TIMEOUT_FIRST_BYTE": "0"},
        {"FIRST_TOKEN_LIMIT": "0", "TIMEOUT_FIRST_BYTE": "3"},
    ],
    ids=["prices", "fallback_named_like_an_alias", "no_end", "no_limit"],
)
def test_what_fits_together_is_taken(environ: dict[str, str]) -> None:
    """The other side of each contradiction."""
    Settings.load({f"LLMPROXY_{name}": value for name, value in environ.items()} | LAYER)


@pytest.mark.parametrize("name", ["ROUTING", "ALIASES", "FALLBACKS", "RULES", "FIRST_TOKEN_LIMIT"])
def test_without_the_layer_nobody_would_look_at_it(name: str) -> None:
    """A setting that does nothing is worse than none."""
    [line] = faults_of(
        {f"LLMPROXY_{name}": TEXT[f"LLMPROXY_{name}"], "LLMPROXY_MIDDLEWARE": "auth,rate_limit"}
    )

    assert line.startswith(f"LLMPROXY_{name}: needs the layer routing in LLMPROXY_MIDDLEWARE")


def test_every_fault_of_routing_is_told_at_once() -> None:
    """One start, one list."""
    lines = faults_of(dict.fromkeys(TEXT, "=") | LAYER)

    assert sorted(line.partition("=")[0] for line in lines) == sorted(TEXT)


@pytest.mark.parametrize(
    ("upstreams", "warned"),
    [
        pytest.param("http://a;tags=fast", ["gold or silver"], id="nobody_has_it"),
        pytest.param("http://a;tags=fast,http://b;tags=silver", [], id="one_of_them_is_enough"),
        pytest.param("", [], id="no_servers_yet"),
    ],
)
def test_a_rule_that_leaves_no_server_is_warned_of(upstreams: str, warned: list[str]) -> None:
    """All it does is to refuse."""
    environ = {
        "LLMPROXY_UPSTREAMS": upstreams,
        "LLMPROXY_RULES": "tier:gold=#silver|gold,tier:new=#fast;m,team:a=m",
    }

    warnings = load(Settings, environ | LAYER).warnings

    assert len(warnings) == len(warned)
    assert all(tags in warning for tags, warning in zip(warned, warnings, strict=True))
