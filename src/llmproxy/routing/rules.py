"""Rules by which a request is for another model, or for certain servers only.

`tier:gold=#gold, long:8000=llama-long, prompt~(?i)invoice=finance-7b;#private`: conditions that
must all hold, joined by `+`, then a model, or the tags of servers, or both.

Rule 1: of the rules that hold the first that names a model decides on the model, and the first
        that names tags on the servers.
Rule 2: conditions are about what was asked for: no rule sees what an earlier one has decided.
Rule 3: the body is looked into last, and only for a rule of which everything else holds.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmproxy.protocol.content import has_images, has_tools
from llmproxy.routing.choosing import pattern_of
from llmproxy.routing.named_models import model_name, texts

BYTES_PER_TOKEN = 4  # of a body; nobody counts tokens before the model server does
# Bytes of a body that are searched. The regex is the operator's, the body is anybody's.
MOST_SEARCHED = 64 * 1024
LONGEST_REGEX = 1000  # characters
_MOST_TOKENS = 10**9
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")

HOW_RULES_LOOK = (
    "must be condition[+condition...]=model or =#tag|tag, separated by commas; conditions are"
    " tier:, team: and tag: with a name, model: with a name or glob, long: with a number of"
    " tokens, has_images, has_tools, over_budget, and last of all prompt~ with a regex"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold."""

    kind: str
    value: str = ""

    def __str__(self) -> str:
        if self.kind == "prompt":
            return f"prompt~{self.value}"
        return f"{self.kind}:{self.value}" if self.value else self.kind


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold, and what follows."""

    conditions: tuple[Condition, ...]
    model: str | None = None
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request before it is sent anywhere."""

    model: str | None = None  # as the caller has named it
    tier: str | None = None
    team: str | None = None
    tags: frozenset[str] = frozenset()  # of the caller's key
    prompt_bytes: int = 0  # of the whole body
    body: bytes = b""  # empty for an upload
    over_budget: bool = False  # a soft budget of the caller is used up


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say of a request."""

    model: str | None = None  # None: as asked
    tags: frozenset[str] = frozenset()  # none: any server


Test = Callable[[Facts], bool]

_UNTOUCHED = Decision()


class Rules:
    """All of them, in their order."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = [
            (rule, [_test(each) for each in sorted(rule.conditions, key=_effort)]) for rule in rules
        ]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def decide(self, facts: Facts) -> Decision:
        """Return what the rules say of a request."""
        model: str | None = None
        tags: frozenset[str] = frozenset()
        for rule, tests in self._rules:
            news = (model is None and rule.model is not None) or (rule.tags and not tags)
            if news and all(test(facts) for test in tests):
                model = model if model is not None else rule.model
                tags = tags or rule.tags
        return Decision(model, tags) if model is not None or tags else _UNTOUCHED


def _effort(condition: Condition) -> int:
    return {"has_tools": 1, "has_images": 1, "prompt": 2}.get(condition.kind, 0)


def _test(condition: Condition) -> Test:
    value = condition.value
    match condition.kind:
        case "tier":
            return lambda facts: facts.tier == value
        case "team":
            return lambda facts: facts.team == value
        case "tag":
            return lambda facts: value in facts.tags
        case "model":
            glob = pattern_of(value)
            return lambda facts: facts.model is not None and glob.fullmatch(facts.model) is not None
        case "long":
            most = int(value) * BYTES_PER_TOKEN
            return lambda facts: facts.prompt_bytes > most
        case "over_budget":
            return lambda facts: facts.over_budget
        case "has_images":
            return lambda facts: has_images(facts.body)
        case "has_tools":
            return lambda facts: has_tools(facts.body)
        case _:
            regex = _compiled(value)
            return lambda facts: regex.search(facts.body, 0, MOST_SEARCHED) is not None


def rules(given: object) -> tuple[Rule, ...]:
    """Read rules; raise `ValueError` saying what is allowed."""
    if isinstance(given, Mapping):
        return tuple(_rule(str(when), then) for when, then in given.items())
    return tuple(_split(text) for text in texts(given, HOW_RULES_LOOK))


def rule_text(rule: Rule) -> str:
    """Return a rule as it may be written."""
    targets = [rule.model] if rule.model is not None else []
    if rule.tags:
        targets.append("#" + "|".join(sorted(rule.tags)))
    return f"{'+'.join(map(str, rule.conditions))}={';'.join(targets)}"


def _split(text: str) -> Rule:
    # The last one: a regex may have one of its own, a model hardly ever has.
    when, equals, then = text.rpartition("=")
    if not equals:
        raise ValueError(HOW_RULES_LOOK)
    return _rule(when, then)


def _rule(when: str, then: object) -> Rule:
    conditions: list[Condition] = []
    rest = when.strip()
    while rest:
        if rest.startswith("prompt~"):
            conditions.append(_regex(rest.removeprefix("prompt~")))  # to the end, `+` included
            break
        text, more, rest = rest.partition("+")
        conditions.append(_condition(text.strip()))
        rest = rest.strip()
        if more and not rest:
            raise ValueError(HOW_RULES_LOOK)
    if not conditions or not isinstance(then, str):
        raise ValueError(HOW_RULES_LOOK)
    return _with_targets(tuple(conditions), then)


def _with_targets(conditions: tuple[Condition, ...], then: str) -> Rule:
    model: str | None = None
    tags: frozenset[str] = frozenset()
    for target in (piece.strip() for piece in then.split(";")):
        if target.startswith("#") and not tags:
            named = [tag.strip() for tag in target[1:].split("|")]
            if not all(_TAG.fullmatch(tag) for tag in named):
                raise ValueError("tags are letters, digits, dots, - and _, separated by |")
            tags = frozenset(named)
        elif not target.startswith("#") and model is None:
            model = model_name(target, HOW_RULES_LOOK)
        elif not target:
            raise ValueError(HOW_RULES_LOOK)
        else:
            raise ValueError("a rule leads to one model and one list of tags at most")
    return Rule(conditions, model, tags)


def _condition(text: str) -> Condition:
    if text in ("has_images", "has_tools", "over_budget"):
        return Condition(text)
    kind, _, value = (part.strip() for part in text.partition(":"))
    if kind == "long":
        if not (value.isascii() and value.isdigit() and len(value) <= 10):
            raise ValueError("long: is followed by a number of tokens")
        if not 0 < int(value) <= _MOST_TOKENS:
            raise ValueError(f"long: is followed by a number from 1 to {_MOST_TOKENS}")
        return Condition(kind, str(int(value)))
    if kind in ("tier", "team", "tag", "model") and value and value.isprintable():
        return Condition(kind, value)
    raise ValueError(HOW_RULES_LOOK)


def _regex(text: str) -> Condition:
    if not 0 < len(text) <= LONGEST_REGEX or not text.isprintable():
        raise ValueError(f"prompt~ is followed by a regex, {LONGEST_REGEX} characters at most")
    _compiled(text)
    return Condition("prompt", text)


def _compiled(regex: str) -> re.Pattern[bytes]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python will read otherwise some day
            return re.compile(regex.encode())
    except (re.error, OverflowError, RecursionError, UnicodeEncodeError, Warning) as exc:
        raise ValueError(f"the regex behind prompt~ cannot be compiled: {exc}") from None
