"""Clients and questions that the tests share."""

from collections.abc import Iterable, Iterator
from itertools import islice

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam

from tests.engines.engine import Engine
from tests.engines.servers import Server

CLIENT_TIMEOUT = 10.0  # seconds; a tiny model answers in milliseconds
SHORT = 24  # tokens
CHAT = "/v1/chat/completions"

HELLO: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Qui êtes-vous? 你是谁? 🦊"},
]


def openai_client(server: Server) -> openai.OpenAI:
    """Return an official client that shows every failure at once."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="not-needed",
        max_retries=0,
        timeout=CLIENT_TIMEOUT,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def chat_body(engine: Engine, **different: object) -> dict[str, object]:
    """Return the body of a chat request for the clients that are not the official one."""
    usual: dict[str, object] = {
        "model": engine.chat_model,
        "messages": HELLO,
        "max_tokens": SHORT,
        "temperature": 0,
    }
    return usual | different


def ask_something_short(server: Server, engine: Engine) -> str:
    """Return the answer to a question of its own, so that no prompt cache can help."""
    with openai_client(server) as client:
        answer = client.chat.completions.create(
            model=engine.chat_model,
            messages=[{"role": "user", "content": "Are you there?"}],
            max_tokens=SHORT,
            temperature=0,
        )
    return answer.choices[0].message.content or ""


def events(response: httpx.Response) -> Iterator[str]:
    """Yield what stands behind each `data:` of a stream."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def take(number: int, stream: Iterable[str]) -> list[str]:
    """Return the next `number` of events; fewer is a failure."""
    taken = list(islice(stream, number))
    assert len(taken) == number, f"the stream ended after {len(taken)} of {number} events"
    return taken
