"""Where values come from: a file, the environment, arguments; the later ones win."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmproxy.settings.faults import Fault, cut
from llmproxy.settings.variables import (
    FIELDS,
    LATER_FIELDS,
    PREFIX,
    field_of,
    is_injected,
    unknown,
    variable_of,
)

DEFAULT = "default"
ENVIRONMENT = "environment"
ARGUMENT = "argument"

_KNOWN = FIELDS | LATER_FIELDS


@dataclass(slots=True)
class Collected:
    """What was set, by field, and by whom."""

    values: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def set(self, name: str, value: object, source: str) -> None:
        """Take a value in the place of an earlier one."""
        self.values[name] = value
        self.sources[name] = source


def collect(environ: Mapping[str, str], arguments: Mapping[str, object]) -> Collected:
    """Gather every value that is set; unknown names are faults."""
    ours, warnings = _environment(environ)
    path = arguments.get("config", ours.get("LLMPROXY_CONFIG"))
    collected = Collected(warnings=warnings)
    if path is not None:
        source = ARGUMENT if "config" in arguments else ENVIRONMENT
        collected.set("config", path, source)
        _file(path, source, collected)
    for variable, value in ours.items():
        if field_of(variable) in FIELDS and variable == variable_of(field_of(variable)):
            collected.set(field_of(variable), value, ENVIRONMENT)
        else:
            collected.faults.append(unknown(variable, as_variable=True))
    for name, given in arguments.items():
        if name in FIELDS:
            collected.set(name, given, ARGUMENT)
        else:
            collected.faults.append(unknown(name, as_variable=False, source=ARGUMENT))
    return collected


def _environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    ours = {name: environ[name] for name in sorted(environ) if name.startswith(PREFIX)}
    injected = [name for name, value in ours.items() if is_injected(name, value)]
    for name in injected:
        del ours[name]
    if not injected:
        return ours, []
    return ours, [
        f"ignored {', '.join(injected)}: Kubernetes sets them for a Service named llmproxy;"
        " `enableServiceLinks: false` in the pod's spec keeps them away"
    ]


def _file(path: object, source: str, collected: Collected) -> None:
    place = "" if source == ENVIRONMENT else source
    try:
        document = tomllib.loads(Path(str(path)).read_bytes().decode())
    except tomllib.TOMLDecodeError as exc:
        fault = Fault("LLMPROXY_CONFIG", cut(str(path)), f"is not valid TOML: {exc}", place)
        collected.faults.append(fault)
        return
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or "not a text file in UTF-8"
        fault = Fault("LLMPROXY_CONFIG", cut(str(path)), f"cannot be read: {reason}", place)
        collected.faults.append(fault)
        return
    name_of_file = f"file {path}"
    for key, value in _flat(document, ""):
        if key == "config":
            cure = "a file cannot name another; set LLMPROXY_CONFIG"
            collected.faults.append(Fault(key, "", cure, name_of_file))
        elif key not in FIELDS:
            collected.faults.append(unknown(key, as_variable=False, source=name_of_file))
        elif key in collected.values:
            cure = "is set twice: as a key and in a table"
            collected.faults.append(Fault(key, "", cure, name_of_file))
        else:
            collected.set(key, value, name_of_file)


def _flat(table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    """Join the keys of tables: `[timeout] connect = 3` is `timeout_connect = 3`."""
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and any(known.startswith(f"{name}_") for known in _KNOWN):
            yield from _flat(value, f"{name}_")
        else:
            yield name, value
