"""The operator's own layers: what is none is told by name before anything is started."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmproxy.settings import Settings, SettingsError, load

LAYERS = """
import asyncio

class Good:
    made = 0
    def __init__(self, app):
        asyncio.get_running_loop()
        Good.made += 1
        self.app = app
    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)

class Flexible:
    def __init__(self, app, *others, colour="red"): ...
    async def __call__(self, *asgi): ...

def good_function(app):
    return app

class Raises(Good):
    def __init__(self, app): raise ConnectionError("c4n4ry")

class Leaves(Good):
    def __init__(self, app): raise SystemExit(7)

class NeedsMore(Good):
    def __init__(self, app, limiter): ...

class TakesNothing(Good):
    def __init__(self): ...

class CannotBeCalled:
    def __init__(self, app): ...

class Wsgi:
    def __init__(self, app): ...
    def __call__(self, environ, start_response): ...

def makes_nothing(app): ...
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_layers.py").write_text(LAYERS)
    (tmp_path / "own_leaving.py").write_text("raise SystemExit(7)")
    (tmp_path / "own_broken.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in [name for name in sys.modules if name not in before]:
        del sys.modules[name]


def faults_of(chain: str, **others: str) -> list[str]:
    environ = {"LLMPROXY_MIDDLEWARE": chain, **others}
    with pytest.raises(SettingsError) as caught:
        load(Settings, environ, makes_layers=True)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("own_layers:Raises", "cannot be made: it raises ConnectionError"),
        ("own_layers:Leaves", "cannot be made: it raises SystemExit"),
        ("own_layers:NeedsMore", "must be a class that takes the app, and needs nothing else"),
        ("own_layers:TakesNothing", "must be a class that takes the app"),
        ("own_layers:CannotBeCalled", "takes no (scope, receive, send)"),
        ("own_layers:Wsgi", "takes no (scope, receive, send)"),
        ("own_layers:makes_nothing", "takes no (scope, receive, send)"),
        ("own_layers:Missing", "cannot be imported: AttributeError"),
        ("own_leaving:Layer", "cannot be imported: SystemExit"),
        ("own_broken:Layer", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_no_layer_is_a_fault(path: str, cure: str) -> None:
    """It stands among the others, with its own name; what it says itself is not repeated."""
    port, layer = sorted(
        faults_of(f"auth,{path}", LLMPROXY_PORT="x"), key=lambda line: "MID" in line
    )

    assert port.startswith("LLMPROXY_PORT='x'")
    assert layer.startswith(f"LLMPROXY_MIDDLEWARE={path!r}: ")
    assert cure in layer
    assert "c4n4ry" not in layer


def test_every_layer_that_cannot_be_made_is_told() -> None:
    """Not only the first."""
    first, second = faults_of("own_layers:Raises,own_layers:Good,own_layers:Wsgi")

    assert "own_layers:Raises" in first
    assert "own_layers:Wsgi" in second


@pytest.mark.parametrize("name", ["Good", "Flexible", "good_function"])
def test_what_is_a_layer_is_taken(name: str) -> None:
    """However it is written; and it may ask for the running loop, as it will have one."""
    environ = {"LLMPROXY_MIDDLEWARE": f"own_layers:{name}"}

    assert load(Settings, environ, makes_layers=True).settings.middleware == (f"own_layers:{name}",)


def test_a_layer_is_made_only_where_that_is_wanted() -> None:
    """Of some there can be only one in a process."""
    environ = {"LLMPROXY_MIDDLEWARE": "own_layers:Good"}

    load(Settings, environ)
    assert sys.modules["own_layers"].Good.made == 0

    load(Settings, environ, makes_layers=True)
    assert sys.modules["own_layers"].Good.made == 1


def test_the_file_that_names_a_layer_is_told(tmp_path: Path) -> None:
    """As for every other fault."""
    config = tmp_path / "llmproxy.toml"
    config.write_text('middleware = ["own_layers:Raises"]')
    with pytest.raises(SettingsError) as caught:
        load(Settings, {"LLMPROXY_CONFIG": str(config)}, makes_layers=True)

    assert f"(file {config}): cannot be made" in str(caught.value)
