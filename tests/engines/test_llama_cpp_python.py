"""The habits of llama-cpp-python's server that a proxy in front of it must know.

Seen with version 0.3.36:

* It works on one request at a time, and while it does, `GET /v1/models` waits too. A model list
  that does not come means a busy server here, not a dead one; `/health` is 404 at once.
* Unless told otherwise (`interrupt_requests`), it drops the stream that it is working on as soon
  as another request arrives: `[DONE]` without a reason, and no end of the body.
* A stream gets its 200 at once, however long it has to wait, and then `: ping` every 15 s. Neither
  says that the model has begun.
* What it finds wrong with a stream after that, a prompt too long above all, ends the body empty.
* A request id that is no UUID is refused with an empty 400, broken JSON with a bare 500.
* An idle connection is closed after 5.0 s.
* A caller who leaves stops a stream within one token; an answer in one piece is written to its end.
"""

import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.engines.asking import CHAT, ask_something_short, chat_body, events, openai_client, take
from tests.engines.engine import Engine
from tests.engines.llama_cpp_python import LLAMA_CPP_PYTHON, interrupting_command
from tests.engines.servers import Server, engine_server, free_port, proxy_server

UVICORN_KEEP_ALIVE = 5  # seconds; the server offers no way to change it
PROMPTLY = 5.0  # seconds
POLL = 0.01  # seconds


@pytest.fixture(scope="module", params=[LLAMA_CPP_PYTHON], ids=[LLAMA_CPP_PYTHON.name])
def engine(request: pytest.FixtureRequest) -> Engine:
    """This engine only."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def interrupting(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The engine as it comes, through llmproxy."""
    folder = tmp_path_factory.mktemp("interrupting")
    port = free_port()
    command = interrupting_command(folder, port)
    with (
        engine_server(engine, folder, command=command, port=port) as upstream,
        proxy_server(upstream, folder=folder) as server,
    ):
        yield server


def test_it_refuses_request_ids_that_are_no_uuids(
    direct: Server, proxied: Server, engine: Engine, http: httpx.Client
) -> None:
    """It gets an id of ours that it accepts, and the caller gets its own back, once."""
    body = chat_body(engine)
    mine = {"x-request-id": "order-66.b"}

    without = http.post(direct.url + CHAT, json=body, headers=mine)
    through = http.post(proxied.url + CHAT, json=body, headers=mine)

    assert without.status_code == 400
    assert through.status_code == 200
    assert through.headers.get_list("x-request-id") == ["order-66.b"]


def test_a_stream_that_it_ends_before_the_first_event_is_no_answer(
    direct: Server, proxied: Server, engine: Engine
) -> None:
    """It says 200, finds the prompt too long, and ends in silence: we do not pass that off."""
    prompt = "fox " * (engine.context_length + 1)

    def ask(client: openai.OpenAI) -> list[object]:
        with client.chat.completions.create(
            model=engine.chat_model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=1,
            stream=True,
        ) as stream:
            return list(stream)

    with openai_client(direct) as client:
        assert ask(client) == []
    with openai_client(proxied) as client, pytest.raises(openai.APIError):
        ask(client)


def test_hanging_up_in_its_queue_frees_the_place(
    direct: Server, proxied: Server, engine: Engine, http: httpx.Client
) -> None:
    """It answers 200 to a stream that has to wait; who leaves then is not served for nothing."""
    body = chat_body(engine, max_tokens=engine.endless, stream=True)
    with http.stream("POST", direct.url + CHAT, json=body) as in_front:
        answer = events(in_front)
        take(1, answer)
        seen = direct.log.read_text().count(f"POST {CHAT}")
        with socket.create_connection(_address(proxied), timeout=PROMPTLY) as waiting:
            waiting.sendall(_as_bytes(httpx.Request("POST", proxied.url + CHAT, json=body)))
            _wait_for_line(direct, f"POST {CHAT}", seen + 1)
        take(300, answer)

    begun = time.monotonic()
    assert ask_something_short(proxied, engine)
    assert time.monotonic() - begun < PROMPTLY


def test_a_stream_that_it_drops_for_another_request_does_not_look_finished(
    interrupting: Server, engine: Engine, http: httpx.Client
) -> None:
    """It writes `[DONE]` without a reason and closes in mid-body; the caller can tell."""
    body = chat_body(engine, max_tokens=engine.endless, stream=True)
    with http.stream("POST", interrupting.url + CHAT, json=body) as stream:
        answer = events(stream)
        take(20, answer)
        ask_something_short(interrupting, engine)

        with pytest.raises(httpx.RemoteProtocolError):
            take(engine.endless, answer)


def test_a_connection_that_it_has_just_let_go_costs_the_caller_nothing(
    direct: Server, proxied: Server, engine: Engine, http: httpx.Client
) -> None:
    """We ask again in the very moment in which it closes what was used 5 s ago."""
    with socket.create_connection(_address(direct), timeout=2 * UVICORN_KEEP_ALIVE) as beside:
        beside.sendall(b"GET /v1/models HTTP/1.1\r\nHost: engine\r\n\r\n")
        assert beside.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert ask_something_short(proxied, engine)
        while beside.recv(65536):
            pass  # what was left of the answer

        assert ask_something_short(proxied, engine)


def _address(server: Server) -> tuple[str, int]:
    url = httpx.URL(server.url)
    assert url.port is not None
    return url.host, url.port


def _as_bytes(request: httpx.Request) -> bytes:
    head = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    head += [b"%b: %b" % header for header in request.headers.raw]
    return b"\r\n".join(head) + b"\r\n\r\n" + request.content


def _wait_for_line(server: Server, text: str, times: int) -> None:
    deadline = time.monotonic() + PROMPTLY
    while True:
        if server.log.read_text().count(text) >= times:
            return
        assert time.monotonic() < deadline, f"{text!r} is not in the log of the engine"
        time.sleep(POLL)
