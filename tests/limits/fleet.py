"""A real `llmproxy serve` with all its workers, and clients who know which one they talk to."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from llmproxy.types import Header
from tests.server.family import READY, able_to_import, asleep, get, workers_of
from tests.support.client import Answer, RawClient, raw_client, request_bytes
from tests.support.proxy import Proxy, serving
from tests.support.upstream import Exchange, Script, ScriptedServer, scripted

MODEL = "llama"
PATIENT = Path(__file__).parent / "patient"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A proxy whose workers are all up, and the model server behind it."""

    proxy: Proxy
    engine: ScriptedServer

    @property
    def log(self) -> str:
        """All that the proxy has said."""
        return self.proxy.process.stdout + self.proxy.process.stderr

    @property
    def gave_up(self) -> int:
        """How often a worker has found the store away, or too slow on a busy machine."""
        return self.log.count("the store cannot be asked")

    @property
    def away(self) -> bool:
        """Whether a worker has found the store away, and has not found it again."""
        limiters = self.log.count("each worker keeps its share")  # which say so as well
        return self.gave_up - limiters > self.log.count("the store answers again")

    @property
    def workers(self) -> dict[str, int]:
        """The process id of each worker."""
        return workers_of(self.proxy.process.pid)

    @asynccontextmanager
    async def crew(self, each: int = 1) -> AsyncIterator[list[list[RawClient]]]:
        """Connect to every worker so many times; one list of clients for each of them."""
        async with AsyncExitStack() as stack:
            crew = []
            for pid in sorted(self.workers.values()):
                others = [other for other in self.workers.values() if other != pid]
                with asleep(*others):
                    clients = [
                        await stack.enter_async_context(raw_client(port=self.proxy.port))
                        for _ in range(each)
                    ]
                    for client in clients:
                        assert (await get(client, b"/health/live"))[0] == 200
                crew.append(clients)
            yield crew


@asynccontextmanager
async def fleet(
    script: Script,
    *,
    keys: Sequence[str] = (),
    store: str = "memory",
    workers: int = 1,
    patient: bool = True,
    **more: str,
) -> AsyncIterator[Fleet]:
    """Start a proxy with these keys; `more` are settings as the environment has them.

    A patient one waits for its Redis for as long as a busy machine may take.
    """
    settings = {
        "LLMPROXY_WORKERS": str(workers),
        "LLMPROXY_STORE": store,
        **({"LLMPROXY_KEYS": ",".join(keys)} if keys else {}),
        **{f"LLMPROXY_{name.upper()}": value for name, value in more.items()},
        **(able_to_import(PATIENT) if patient else {}),
    }
    async with (
        scripted(script) as engine,
        serving({"LLMPROXY_UPSTREAMS": engine.url, **settings}) as proxy,
    ):
        await proxy.process.says(READY)
        yield Fleet(proxy, engine)


def question(
    key: str | None, *, stream: bool = False, headers: Sequence[Header] = (), **more: object
) -> bytes:
    """Write a chat request of somebody who has this key."""
    body = {"model": MODEL, "max_tokens": 10, **({"stream": True} if stream else {}), **more}
    credential = [(b"authorization", f"Bearer {key}".encode())] if key is not None else []
    return request_bytes(headers=[*credential, *headers], body=json.dumps(body).encode())


async def ask(client: RawClient, key: str | None, **more: object) -> Answer:
    """Ask one question and return the whole answer."""
    client.send(question(key, **more))  # type: ignore[arg-type]  # what `question` takes
    return await client.answer()


async def burst(clients: Sequence[RawClient], key: str, wishes: int) -> Counter[int]:
    """Ask so many questions, all clients at once; return how often each status came."""
    seen: Counter[int] = Counter()
    left = wishes

    async def go_on(client: RawClient) -> None:
        nonlocal left
        while left:
            left -= 1
            seen[(await ask(client, key)).status] += 1

    await asyncio.gather(*(go_on(client) for client in clients))
    return seen


async def answers_at_once(exchange: Exchange) -> None:
    """Answer every request as an engine does that has nothing else to do."""
    await exchange.request()
    exchange.json(ANSWER)


ANSWER = {
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
