"""From an environment to settings, with the story of each value."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from llmproxy.protocol.presets import PRESETS
from llmproxy.settings.faults import Fault, SettingsError
from llmproxy.settings.layers import why_not_made
from llmproxy.settings.model import Settings
from llmproxy.settings.sources import DEFAULT, ENVIRONMENT, collect
from llmproxy.settings.texts import as_size, as_text
from llmproxy.settings.upstreams import Given, has_key
from llmproxy.settings.variables import IN_THIS_VERSION, field_of, variable_of

SIZES = frozenset({"max_body", "max_upload"})
_MAY_NAME_VARIABLES = {"upstreams", "keys"}  # by `env:NAME`
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Origin:
    """One variable: its effective value as text, secrets masked, and where it came from."""

    variable: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings and what there is to tell about them."""

    settings: S
    origins: tuple[Origin, ...]
    warnings: tuple[str, ...]


def load(
    settings_class: type[S],
    environ: Mapping[str, str],
    arguments: Mapping[str, object] | None = None,
    *,
    makes_layers: bool = False,
) -> Loaded[S]:
    """Read defaults, file, environment and arguments; raise with every fault in any of them.

    With `makes_layers` each layer of the operator's own is made once, and thrown away.
    """
    collected = collect(environ, arguments or {})
    values = {name: value for name, value in collected.values.items() if name != "config"}
    for name in _MAY_NAME_VARIABLES & values.keys():
        values[name] = Given(values[name], environ)
    faults = list(collected.faults)
    settings = None
    try:
        settings = settings_class(**values)
    except SettingsError as exc:
        faults += [_placed(fault, collected.sources) for fault in exc.faults]
    if makes_layers and (wrong := why_not_made(values.get("middleware"))) is not None:
        variable = variable_of("middleware")
        faults += [_placed(fault, collected.sources) for fault in wrong.faults(variable)]
    if settings is None or faults:
        raise SettingsError(faults)
    origins = tuple(
        Origin(
            variable_of(name),
            _text(settings, name, collected.values),
            collected.sources.get(name, DEFAULT),
        )
        for name in map(field_of, IN_THIS_VERSION)
    )
    return Loaded(settings, origins, (*collected.warnings, *_warnings(settings)))


def _text(settings: Settings, name: str, given: Mapping[str, object]) -> str:
    if name == "config":
        return as_text(given.get(name))
    value = getattr(settings, name)
    return as_size(value) if name in SIZES else as_text(value)


def _placed(fault: Fault, sources: Mapping[str, str]) -> Fault:
    source = sources.get(field_of(fault.variable), ENVIRONMENT)
    return fault if source == ENVIRONMENT else replace(fault, source=source)


def _warnings(settings: Settings) -> list[str]:
    unasked = settings.auth == "off" and settings.admin_key is not None and settings.store.shared
    return [
        *(
            ["keys can be issued and nobody is asked for one; LLMPROXY_AUTH=keys asks"]
            if unasked
            else []
        ),
        *_keyless(settings),
        *_nowhere(settings),
    ]


def _nowhere(settings: Settings) -> list[str]:
    """Warn of rules that leave no server, where it is known what servers there can be."""
    if not settings.upstreams or any(each.found_by == "file" for each in settings.upstreams):
        return []
    known = frozenset[str]().union(*(upstream.tags for upstream in settings.upstreams))
    return [
        f"a rule in LLMPROXY_RULES sends requests to servers with the tag"
        f" {' or '.join(sorted(rule.tags))}, and none has it in LLMPROXY_UPSTREAMS"
        for rule in settings.rules
        if rule.tags and rule.tags.isdisjoint(known)
    ]


def _keyless(settings: Settings) -> list[str]:
    return [
        f"{upstream.name} is {upstream.preset}:// without a key;"
        f" set one with ;key=env:NAME in LLMPROXY_UPSTREAMS"
        for upstream in settings.upstreams
        if upstream.preset in PRESETS and PRESETS[upstream.preset].hosted and not has_key(upstream)
    ]
