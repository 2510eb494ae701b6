"""When the caller leaves, the engine stops: a GPU does not write what nobody reads."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.engines.asking import CHAT, ask_something_short, chat_body, events, take
from tests.engines.engine import Engine
from tests.engines.servers import Server

PROMPTLY = 5.0  # seconds; the answer that is left would take a minute


def test_hanging_up_in_mid_stream_frees_the_engine(
    server: Server, engine: Engine, http: httpx.Client
) -> None:
    """Who waits behind a long answer is served as soon as its reader has left."""
    body = chat_body(engine, max_tokens=engine.endless, stream=True)
    with ThreadPoolExecutor(1) as next_caller:
        with http.stream("POST", server.url + CHAT, json=body) as stream:
            answer = events(stream)
            take(20, answer)
            waiting = next_caller.submit(ask_something_short, server, engine)
            take(300, answer)
            assert not waiting.done(), "the engine does two things at once: nothing is shown"

        assert waiting.result(PROMPTLY)


def test_hanging_up_again_and_again_leaves_nothing_behind(
    server: Server, engine: Engine, http: httpx.Client
) -> None:
    """Twenty callers who leave cost the next one nothing."""
    body = chat_body(engine, max_tokens=engine.endless, stream=True)
    for read in range(20):
        with http.stream("POST", server.url + CHAT, json=body) as stream:
            take(read, events(stream))

    assert ask_something_short(server, engine)
