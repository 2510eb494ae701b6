"""The parts of uvicorn that we build on, so that an upgrade that moves one fails here, loudly."""

import ast
import inspect
import textwrap
from importlib.metadata import requires, version

import pytest
import uvicorn
from uvicorn.server import Server, ServerState

from llmproxy.server import protocol, worker

MINOR = "0.54"


def test_the_version_is_the_one_that_was_read() -> None:
    """A new minor version: read uvicorn/server.py, then change the pin and this line."""
    pins = [line for line in requires("llmproxy") or [] if line.startswith("uvicorn")]

    assert version("uvicorn").startswith(f"{MINOR}.")
    assert pins == ["uvicorn<0.55,>=0.54"]


def test_a_protocol_is_made_from_these_arguments() -> None:
    """`Server.startup` makes one for each connection, and asks the configuration for the class."""
    source = inspect.getsource(Server.startup)
    calls = [
        node
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "config.http_protocol_class"
    ]

    assert len(calls) == 1
    assert calls[0].args == []
    assert {word.arg for word in calls[0].keywords} == {
        "config",
        "server_state",
        "app_state",
        "_loop",
    }
    taken = inspect.signature(protocol.GuardedProtocol).parameters
    assert {"config", "server_state", "app_state", "_loop"} <= taken.keys()


def test_the_state_that_is_shared_has_these_fields() -> None:
    """Ours count requests, tasks and connections into it, and take the Date from it."""
    state = ServerState()

    assert state.total_requests == 0
    assert state.connections == set()
    assert state.tasks == set()
    assert state.default_headers == []


async def test_the_date_is_among_the_default_headers() -> None:
    """`on_tick` renews it; without `server_header` it is the only one."""
    server = Server(uvicorn.Config("x:y", server_header=False, log_config=None))
    server.config.encoded_headers = []

    await server.on_tick(0)

    assert [name for name, _ in server.server_state.default_headers] == [b"date"]


@pytest.mark.parametrize("name", ["startup", "shutdown", "main_loop", "on_tick", "serve"])
def test_the_server_lives_in_these_steps(name: str) -> None:
    """We override some and count on the order of all."""
    assert inspect.iscoroutinefunction(getattr(Server, name))


def test_the_server_goes_by_these_marks() -> None:
    """They are set from signal handlers of ours."""
    server = Server(uvicorn.Config("x:y", log_config=None))

    assert (server.started, server.should_exit, server.force_exit) == (False, False, False)
    assert server._captured_signals == []
    assert list(inspect.signature(Server.handle_exit).parameters) == ["self", "sig", "frame"]


def test_a_stop_closes_listening_first_and_then_tells_each_connection() -> None:
    """In this order a request that is on its way is still served."""
    source = inspect.getsource(Server.shutdown)
    steps = [
        "server.close()",
        "connection.shutdown()",
        "_wait_tasks_to_complete",
        "lifespan.shutdown()",
    ]

    places = [source.index(step) for step in steps]
    assert places == sorted(places)


def test_a_stop_waits_for_connections_and_tasks() -> None:
    """Both are taken from the shared state, and an order to end at once is heard in between."""
    source = inspect.getsource(Server._wait_tasks_to_complete)

    assert "self.server_state.connections and not self.force_exit" in source
    assert "self.server_state.tasks and not self.force_exit" in source


def test_what_we_override_is_there_to_be_overridden() -> None:
    """A method that uvicorn no longer calls would be overridden in vain."""
    known = {"startup", "shutdown", "handle_exit", "main_loop", "on_tick", "serve", "_serve"}
    for name, method in vars(worker.Server).items():
        if inspect.isfunction(method) and name in known:
            assert callable(getattr(Server, name, None)), name
    assert "startup" in vars(worker.Server)
