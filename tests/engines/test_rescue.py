"""A stream whose engine is killed is finished by another one of the same kind."""

import json
import os
import signal
import time
from pathlib import Path

import httpx

from tests.engines.asking import CHAT, chat_body, events
from tests.engines.engine import Engine
from tests.engines.servers import Server, engine_server, proxy_server

TOKENS = 1500
READ = 40  # of them, before the engine is killed


def test_the_text_is_that_of_an_engine_that_lives(
    engine: Engine, http: httpx.Client, tmp_path: Path
) -> None:
    """To the letter, with one end, and both ends tell how many tokens there were."""
    body = chat_body(engine, max_tokens=TOKENS, stream=True)
    folders = [tmp_path / name for name in ("a", "b", "proxy")]
    for folder in folders:
        folder.mkdir()
    with (
        engine_server(engine, folders[0]) as first,
        engine_server(engine, folders[1]) as second,
        proxy_server(first, second, folder=folders[2], layers="routing") as proxy,
    ):
        with http.stream("POST", second.url + CHAT, json=body) as stream:
            whole = [said(event) for event in events(stream)]
        with http.stream("POST", proxy.url + CHAT, json=body) as stream:
            broken = {"upstream-1": first, "upstream-2": second}[
                stream.headers["x-llmproxy-upstream"]
            ]
            answer = events(stream)
            read = [said(next(answer)) for _ in range(READ)]
            os.kill(broken.pid, signal.SIGKILL)
            rest = [said(event) for event in answer]

        assert "".join(read + rest) == "".join(whole)
        assert len("".join(whole)) > len("".join(read))
        assert '"rescues":1' in written_by(proxy)


def written_by(proxy: Server) -> str:
    """Return the log of a proxy, once the line of the request is in it."""
    deadline = time.monotonic() + 5.0
    while '"endpoint":"chat"' not in (log := proxy.log.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
    return log


def said(event: str) -> str:
    """Return the text of an event."""
    if event.strip() == "[DONE]":
        return ""
    choices = json.loads(event)["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""
