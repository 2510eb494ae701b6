"""Each context field is assigned by the one file that owns it, and the docstring says so."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import llmproxy
from llmproxy.context import WRITERS, RequestContext

PACKAGE = Path(llmproxy.__file__).parent
CONTEXT_SPELLINGS = {"ctx", "self.ctx", "get_context(scope)"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    PACKAGE / "attempts.py",
    PACKAGE / "forward.py",
    PACKAGE / "journey.py",
    PACKAGE / "relay.py",
    PACKAGE / "rescuing.py",
    *sorted(path for path in PACKAGE.glob("middleware/*.py") if path.stem != "__init__"),
]
OTHERS = [path for path in SOURCES if path not in LAYERS]
SET_AT_BIRTH = {"request_id", "engine_id", "started_at", "fields"}
LABELS = ("Reads", "Writes", "Raises")

every_layer = pytest.mark.parametrize("path", LAYERS, ids=lambda path: path.stem)


def touched_fields(source: str) -> tuple[set[str], set[str]]:
    """The names assigned and the names read on a context, however it is spelled."""
    written: set[str] = set()
    read: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in CONTEXT_SPELLINGS:
            (read if isinstance(node.ctx, ast.Load) else written).add(node.attr)
    return written, read


def declared(source: str, label: str) -> set[str]:
    """The names behind `Reads:` or `Writes:` in a module docstring, over several lines."""
    doc = ast.get_docstring(ast.parse(source)) or ""
    _, found, rest = doc.partition(f"{label}:")
    assert found, f"the docstring has no line `{label}:`"
    lines = rest.splitlines()
    taken = [lines[0]]
    for line in lines[1:]:
        if not line.startswith(" "):
            break
        taken.append(line)
    return {name.strip() for name in " ".join(taken).split(",")} - {"(nothing)", ""}


def test_the_reading_of_sources_is_right() -> None:
    """Assignments of every form are writing, everything else is reading."""
    source = '''"""Do this.

Reads:  a, b,
        c
Writes: d, e
Raises: (nothing)
"""
ctx.d = ctx.a
self.ctx.e += 1
x, ctx.f = get_context(scope).b, 2
ctx.g: int = 3
other.h = ctx.c.i
del ctx.j
'''

    assert touched_fields(source) == ({"d", "e", "f", "g", "j"}, {"a", "b", "c"})
    assert declared(source, "Reads") == {"a", "b", "c"}
    assert declared(source, "Writes") == {"d", "e"}
    assert declared(source, "Raises") == set()


def test_every_field_has_a_writer() -> None:
    """A field that nobody owns cannot be added."""
    assert {f.name for f in fields(RequestContext)} - SET_AT_BIRTH == WRITERS.keys()


def test_every_writer_exists() -> None:
    """The table names files, and no file twice."""
    assert set(WRITERS.values()) <= {path.stem for path in LAYERS}
    assert len({path.stem for path in LAYERS}) == len(LAYERS)


@every_layer
def test_a_layer_writes_what_it_owns_and_says_so(path: Path) -> None:
    """Source, docstring and `WRITERS` agree."""
    source = path.read_text()
    owned = {name for name, writer in WRITERS.items() if writer == path.stem}

    written, _ = touched_fields(source)

    assert written == owned
    assert declared(source, "Writes") == written


@every_layer
def test_a_layer_says_what_it_reads(path: Path) -> None:
    """Whoever moves a layer can see what must stand before it."""
    source = path.read_text()

    _, read = touched_fields(source)

    assert declared(source, "Reads") == read


@every_layer
def test_a_layer_says_what_it_raises(path: Path) -> None:
    """All three lines, in this order, at the end of the docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    places = [doc.find(f"\n{label}:") for label in LABELS]

    assert min(places) > 0
    assert places == sorted(places)
    assert "\n\n" not in doc[places[0] + 1 :]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_writes(path: Path) -> None:
    """Engines do not know the context; who knows it without owning a field leaves it alone."""
    written, _ = touched_fields(path.read_text())

    assert not written


def test_the_context_is_no_bag() -> None:
    """No field for whatever somebody may think of later, and none that is not declared."""
    assert not hasattr(RequestContext("r", "e", 0.0, {}), "__dict__")
    assert not {f.name for f in fields(RequestContext)} & {"extra", "state", "data", "extras"}
