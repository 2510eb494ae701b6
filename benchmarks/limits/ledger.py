"""`python -m benchmarks.limits.ledger`: whether what is charged is what is owed, to the token.

Many requests in one process, over the store in memory. What stands in for the model server ends
each of them in one way of many, and clients leave whenever it pleases them. What is owed is
worked out from what a client was sent and what was asked for, and from nothing that the proxy
has counted.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress

import uvloop

from llmproxy.assembly import assemble
from llmproxy.context import get_context
from llmproxy.engines import Engines
from llmproxy.errors import UpstreamBroken
from llmproxy.logs import HostLog
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.settings import Settings
from llmproxy.stack import Frame, build
from llmproxy.types import Header, Message, Receive, Scope, Send

KEYS = ("one", "two", "three")
LIMITS = "1000000000 req/min, 1000000000000 tok/min, 1000 concurrent"
MANNERS = {"json": 30, "stream": 25, "says nothing": 10, "refuses": 10, "breaks": 10, "stuck": 15}
LEAVES = 0.25  # of all requests, at some moment
MOST_EVENTS = 40
BYTES_PER_TOKEN = 4  # of a prompt that nobody has counted
JSON: list[Header] = [(b"content-type", b"application/json")]
EVENTS: list[Header] = [(b"content-type", b"text/event-stream")]
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"so"}}]}\n\n'


class Ledger:
    """Asks, and knows what is owed."""

    def __init__(self, seed: int) -> None:
        self.owed: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self._chance = random.Random(seed)

    async def strike(self, engines: Engines, *, requests: int, clients: int) -> None:
        """Send so many requests, some at once."""
        app = build(Frame(access_log=HostLog("nobody")), engines.parts, self._server)
        left = iter(range(requests))

        async def go_on() -> None:
            for _ in left:
                request = _Request(self._chance)
                task = asyncio.create_task(request.through(app))
                if self._chance.random() < LEAVES:
                    for _ in range(self._chance.randrange(60)):
                        await asyncio.sleep(0)
                    task.cancel()
                elif request.manner == "stuck":
                    await request.stuck.wait()
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                self.owed[request.key] += request.owed()
                self.endings[f"{request.manner}, {request.ending()}"] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(go_on())

    async def _server(self, scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        request: _Request = scope["state"]["request"]
        for _ in range(self._chance.randrange(3)):
            await asyncio.sleep(0)
        ctx.attempts += 1
        request.asked = True
        await asyncio.sleep(0)
        if request.manner == "refuses":
            await send({"type": "http.response.start", "status": 500, "headers": JSON})
            await send({"type": "http.response.body", "body": b"{}", "more_body": False})
            return
        if request.manner == "json":
            body = json.dumps({"choices": [], "usage": request.usage}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": JSON})
            cut = self._chance.randrange(len(body))
            for piece, more in ((body[:cut], True), (body[cut:], False)):
                await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
            return
        if request.manner == "breaks" and not request.goal:
            request.failed = True
            raise UpstreamBroken("It hung up.")
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for _ in range(request.goal):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            await asyncio.sleep(0)
        if request.manner == "breaks":
            raise UpstreamBroken("It hung up.")
        if request.manner == "stuck":
            request.stuck.set()
            await asyncio.Event().wait()
        last = b"data: [DONE]\n\n"
        if request.manner == "stream":
            last = b"data: %b\n\n%b" % (
                json.dumps({"choices": [], "usage": request.usage}).encode(),
                last,
            )
            request.told = True
        await send({"type": "http.response.body", "body": last, "more_body": False})


class _Request:
    """One request: what is to become of it, and what its client has seen."""

    def __init__(self, chance: random.Random) -> None:
        self.key = chance.choice(KEYS)
        [self.manner] = chance.choices([*MANNERS], [*MANNERS.values()])
        self.goal = chance.randrange(MOST_EVENTS)
        prompt, completion = chance.randint(1, 500), chance.randint(1, 200)
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        streams = self.manner not in ("json", "refuses")
        words = "word " * chance.randrange(40)
        asked = {"model": "m", "max_tokens": 300, "stream": streams, "user": words}
        self.body = json.dumps(asked).encode()
        self.asked = False  # a server was
        self.failed = False  # and has failed before it had said anything
        self.stuck = asyncio.Event()  # it has said all that it will ever say
        self.told = False  # the server has sent its count
        self.status = 0
        self.events = 0
        self.size = 0  # bytes of the body
        self.complete = False

    async def through(self, app: object) -> None:
        """Send it, and note what comes."""
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            else:
                self.events += message["body"].count(b'"choices":[{')
                self.size += len(message["body"])
                self.complete = self.complete or not message.get("more_body", False)

        headers = [
            (b"authorization", b"Bearer sk-of-number-" + self.key.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
        ]
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "client": ("192.0.2.1", 1),
            "server": ("127.0.0.1", 80),
            "headers": headers,
            "extensions": {},
            "state": {"request": self},
        }
        with suppress(UpstreamBroken):
            await app(scope, receive, send)  # type: ignore[operator]  # any ASGI app

    def owed(self) -> int:
        """Return the tokens that are owed."""
        prompt = -(-len(self.body) // BYTES_PER_TOKEN)
        if self.status == 0:
            # Left before anything came: the prompt was read. A failure costs nothing.
            return prompt if self.asked and not self.failed else 0
        if self.status != 200:
            return 0
        if self.told or (self.manner == "json" and self.complete):
            return sum(self.usage.values())
        if self.manner == "json":
            return prompt + self.size // BYTES_PER_TOKEN  # half of it: nobody can read that
        return prompt + self.events

    def ending(self) -> str:
        """Return how it has ended, for the list."""
        if self.complete:
            return f"complete with {self.status}"
        return f"broken off after {self.status}" if self.status else "nothing came"


async def measure(requests: int, seed: int) -> bool:
    """Print what is owed and what is charged; return whether it is the same."""
    settings = Settings(
        upstreams="http://127.0.0.1:8000",
        keys=",".join(f"{key}:sk-of-number-{key}" for key in KEYS),
        limits=LIMITS,
        budget="1000000000000000 tok",
        middleware="auth,rate_limit",
    )
    engines = assemble(settings, Frame().metrics, TrustedProxies(()), 0)
    await engines.start()
    ledger = Ledger(seed)
    began = time.monotonic()
    await ledger.strike(engines, requests=requests, clients=48)
    took = time.monotonic() - began
    wrong = False
    for entry in engines.configured.entries:
        used = {
            line.text: line.meter.limit - reading.left
            for line, reading in await engines.limiter.standing(entry.principal)
            if line.unit == "concurrent" or line.kind != "limit"
        }
        held, charged = used.values()
        owed = ledger.owed[entry.principal.name]
        wrong = wrong or charged != owed or held != 0
        print(
            f"{entry.principal.name:6} owed {owed:12,}  charged {charged:12,.0f}  held {held:.0f}"
        )
    await engines.aclose()
    for ending, count in sorted(ledger.endings.items()):
        print(f"{count:8,}  {ending}")
    print(f"{requests:,} requests in {took:.0f} s: {'WRONG' if wrong else 'right to the token'}")
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits.ledger", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if not runner.run(measure(options.requests, options.seed)):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
