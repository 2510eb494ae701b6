"""The grammar of names that lead to models: `name=model[|model...][;option=value...]`.

Entries are separated by commas. A list of such texts says the same, and so does a table, in
which a comma or a semicolon may be part of a name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LONGEST_NAME = 256  # characters of a model
HOW_THEY_LOOK = "must be name=model[|model...], separated by commas, or a table of lists"


@dataclass(frozen=True, slots=True)
class NamedModels:
    """One entry."""

    name: str
    models: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)


def named_models(given: object) -> list[NamedModels]:
    """Read the entries; raise `ValueError` saying what is allowed."""
    if isinstance(given, Mapping):
        return [_from_table(model_name(name), content) for name, content in given.items()]
    return [_from_text(text) for text in texts(given, HOW_THEY_LOOK)]


def texts(given: object, how: str) -> Iterator[str]:
    """Return the entries of a text, at its commas, or those of a list of texts."""
    pieces = given.split(",") if isinstance(given, str) else [] if given is None else given
    if not isinstance(pieces, list | tuple):
        raise ValueError(how)
    for piece in pieces:
        if not isinstance(piece, str):
            raise ValueError(how)
        if piece.strip():
            yield piece.strip()


def model_name(given: object, how: str = HOW_THEY_LOOK) -> str:
    """Read what may be the name of a model."""
    name = given.strip() if isinstance(given, str) else ""
    if 0 < len(name) <= LONGEST_NAME and name.isprintable():
        return name
    raise ValueError(f"{how}; a name is printable, {LONGEST_NAME} characters at most")


def _from_text(text: str) -> NamedModels:
    name, equals, content = text.partition("=")
    if not equals:
        raise ValueError(HOW_THEY_LOOK)
    return _with_options(model_name(name), content)


def _from_table(name: str, content: object) -> NamedModels:
    if isinstance(content, str):
        return _with_options(name, content)
    if isinstance(content, Mapping):
        options = {str(option): value for option, value in content.items()}
        models = options.pop("models", None)
        return NamedModels(name, _models(models), options)
    return NamedModels(name, _models(content))


def _with_options(name: str, content: str) -> NamedModels:
    models, *rest = content.split(";")
    options: dict[str, object] = {}
    for piece in rest:
        option, equals, value = (part.strip() for part in piece.partition("="))
        if not piece.strip():
            continue
        if not equals or option in options:
            raise ValueError("an option after ; must be written option=value, and once")
        options[option] = value
    return NamedModels(name, _models(models), options)


def _models(given: object) -> tuple[str, ...]:
    pieces = given.split("|") if isinstance(given, str) else given
    if not isinstance(pieces, list | tuple) or not pieces:
        raise ValueError(HOW_THEY_LOOK)
    return tuple(model_name(piece) for piece in pieces)
