"""The grammar of lists.

A comma always starts the next entry. Inside an entry options follow after `;`, and a list in
an option uses `|`. JSON is accepted wherever a list is, and so are the lists and tables of TOML
and Python: whoever needs a comma or a semicolon inside a value writes one of those.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmproxy import codec
from llmproxy.settings.faults import MASK, Refused, cut, refuse, shown

_NAMED = re.compile(r"([^=:;/]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list: `[name=]value[;option=value...]`."""

    value: str
    name: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def strings(given: object) -> tuple[str, ...]:
    """Read a list whose entries are plain text."""
    found = []
    for item in _items(given):
        if not isinstance(item, str):
            raise refuse(item, "every entry must be text")
        if item.strip():
            found.append(item.strip())
    return tuple(found)


def entries(given: object) -> tuple[list[Entry], list[Refused]]:
    """Read a list whose entries may have a name and options; what is wrong stands beside it."""
    found: list[Entry] = []
    refused: list[Refused] = []
    for item in _items(given, mapping_allowed=True):
        try:
            if isinstance(item, str):
                if item.strip():
                    found.append(_entry(item.strip()))
            elif isinstance(item, Mapping):
                found.append(_native_entry(item))
            else:
                raise refuse(item, "every entry must be text or a table")
        except Refused as exc:
            refused.append(exc)
    return found, refused


def option_list(given: object) -> tuple[str, ...]:
    """Read a list inside an option: text with `|`, or a native list."""
    parts = given.split("|") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple | frozenset | set):
        raise refuse(given, "must be a list, separated by |")
    found = []
    for part in parts:
        if not isinstance(part, str) or not part.strip() or not part.strip().isprintable():
            raise refuse(given, "every entry of the list must be printable text")
        found.append(part.strip())
    return tuple(found)


def native(given: object) -> object:
    """Return what a text that begins like JSON says; anything else as it is."""
    if not isinstance(given, str) or not given.lstrip().startswith(("[", "{")):
        return given
    try:
        return codec.loads(given)
    except codec.NotJson:
        raise Refused((shown(given), "begins like JSON but is not valid JSON")) from None


def _items(given: object, *, mapping_allowed: bool = False) -> Iterable[object]:
    if given is None:
        return ()
    given = native(given)
    if isinstance(given, str):
        return given.split(",")
    if isinstance(given, Mapping):
        if not mapping_allowed:
            raise refuse(given, "must be a list")
        return [_keyed(str(name), item) for name, item in given.items()]
    if isinstance(given, list | tuple | set | frozenset):
        return given
    raise refuse(given, "must be a list: entries separated by commas, or JSON")


def _keyed(name: str, item: object) -> object:
    """Give an item of a table the name it has there."""
    if isinstance(item, str):
        return {"name": name, "url": item}
    if isinstance(item, Mapping) and "name" not in item:
        return {"name": name, **item}
    raise refuse(item, f"{cut(name)} must be a URL, or a table with a url and no other name")


def _entry(text: str) -> Entry:
    head, *rest = (part.strip() for part in text.split(";"))
    named = _NAMED.fullmatch(head)
    name, value = (named[1].strip(), named[2].strip()) if named else (None, head)
    options: dict[str, object] = {}
    for part in rest:
        if not part:
            continue
        option, equals, content = part.partition("=")
        option = option.strip()
        if not equals:
            raise Refused((MASK, "an option after ; must be written option=value"))
        if option in options:
            raise Refused((cut(option), "this option is given twice"))
        options[option] = content.strip()
    return Entry(value, name, options)


def _native_entry(table: Mapping[object, object]) -> Entry:
    options = {str(option): content for option, content in table.items()}
    name, value = options.pop("name", None), options.pop("url", None)
    if not isinstance(value, str):
        raise Refused(("", "a table needs a `url`"))
    if name is not None and not isinstance(name, str):
        raise refuse(name, "`name` must be text")
    return Entry(value.strip(), name, options)
