"""Many tenants with many endings, and what each of them owes in truth.

The engine decides by the request how it behaves, and what it reports it also writes down. The
client writes down how the request has ended. Each tenant's prompts and answers carry its canary.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.limits.fleet import question
from tests.support.client import RawClient, raw_client
from tests.support.upstream import Exchange, chat_events

CANARY = re.compile(rb"canary-\d+-\w+")
MOST = 60  # tokens of one answer
# What the engine does, and how often of a hundred.
MANNERS = {"json": 40, "stream": 25, "fails": 8, "hangs_up": 4, "silent": 10, "stuck": 13}
FINISHED = ("json", "stream")
LEFT = ("silent", "stuck")  # by the client, who is tired of waiting


@dataclass(frozen=True, slots=True)
class Tenant:
    """One key, and what only its own answers may have in them."""

    number: int

    @property
    def name(self) -> str:
        return f"tenant{self.number}"

    @property
    def secret(self) -> str:
        return f"secret-of-tenant-{self.number}-"

    @property
    def canary(self) -> str:
        return f"canary-{self.number}-{self.number * 7919 % 9973:x}z"

    @property
    def entry(self) -> str:
        return f"{self.name}:{self.secret};limits=1000 concurrent;budget=1000000000 tok"


@dataclass
class Hammer:
    """Asks, and knows what is owed."""

    tenants: Sequence[Tenant]
    seed: int
    owed: Counter[str] = field(default_factory=Counter)  # tokens, by tenant
    endings: Counter[str] = field(default_factory=Counter)
    foreign: list[bytes] = field(default_factory=list)  # canaries where they must not be
    _reported: dict[str, int] = field(default_factory=dict)  # by request

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    # The engine

    async def script(self, exchange: Exchange) -> None:
        request = await exchange.request()
        asked = json.loads(request.body)
        manner, name = asked["user"].split(":")
        canary = asked["messages"][0]["content"]
        prompt, completion = 1 + len(name), self._chance.randint(1, MOST)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        self._reported[name] = prompt + completion
        if manner == "json":
            choice = {"index": 0, "message": {"role": "assistant", "content": canary}}
            exchange.json({"object": "chat.completion", "choices": [choice], "usage": usage})
        elif manner == "stream":
            await self._stream(exchange, canary, usage if "stream_options" in asked else None)
        elif manner == "fails":
            exchange.json({"error": {"message": canary}}, b"500 Internal Server Error")
        elif manner == "hangs_up":
            exchange.reset()
        elif manner == "silent":
            await exchange.closed()
        else:
            exchange.begin()
            exchange.chunk(chat_events([canary])[0])
            await exchange.closed()

    async def _stream(self, exchange: Exchange, canary: str, usage: dict[str, int] | None) -> None:
        *events, done = chat_events([canary] * self._chance.randint(1, 5))
        if usage is not None:
            events.append(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        whole = b"".join(events) + done
        exchange.begin()
        while whole:
            size = self._chance.randint(1, 200)
            exchange.chunk(whole[:size])
            whole = whole[size:]
            if self._chance.random() < 0.3:
                await asyncio.sleep(0.001)
        exchange.end()

    # The clients

    async def strike(self, port: int, *, requests: int, clients: int) -> None:
        """Ask so many questions, some clients at once."""
        left = iter(range(requests))

        async def go_on() -> None:
            for number in left:
                tenant = self._chance.choice(self.tenants)
                [manner] = self._chance.choices([*MANNERS], [*MANNERS.values()])
                # Half of them stay on a connection that others have used before.
                if not kept or manner in LEFT or self._chance.random() < 0.3:
                    async with raw_client(port=port) as client:
                        await self._ask(client, tenant, manner, str(number))
                else:
                    client = kept.pop()
                    await self._ask(client, tenant, manner, str(number))
                    if not client.ended:
                        kept.append(client)

        kept: list[RawClient] = []
        async with (
            raw_client(port=port) as one,
            raw_client(port=port) as other,
            asyncio.TaskGroup() as group,
        ):
            kept += [one, other]
            for _ in range(clients):
                group.create_task(go_on())

    async def _ask(self, client: RawClient, tenant: Tenant, manner: str, name: str) -> None:
        client.send(
            question(
                tenant.secret,
                stream=manner in ("stream", "stuck"),
                max_tokens=MOST,
                user=f"{manner}:{name}",
                messages=[{"role": "user", "content": tenant.canary}],
            )
        )
        if manner == "silent":
            await asyncio.sleep(self._chance.uniform(0, 0.05))  # before it is asked, or after
            client.close()
            self.endings[manner] += 1
            return
        if manner == "stuck":
            head = await client.head()
            seen = head.raw + (await client.some() if head.status == 200 else b"")
            client.close()
            self.endings[f"{manner} {head.status}"] += 1
            self._look(tenant, seen)
            return
        answer = await client.answer()
        self._look(tenant, answer.raw + answer.body)
        self.endings[f"{manner} {answer.status}"] += 1
        if answer.status == 200 and client.complete:
            assert manner in FINISHED
            self.owed[tenant.name] += self._reported[name]

    def _look(self, tenant: Tenant, seen: bytes) -> None:
        own = tenant.canary.encode()
        self.foreign += [found for found in CANARY.findall(seen) if found != own]
