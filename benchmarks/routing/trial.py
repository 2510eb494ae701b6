"""One run: a fleet, a proxy with one policy in front of it, and clients.

All times in what it returns are seconds of the model.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from benchmarks.hardship.findings import quantile
from benchmarks.hardship.stage import START_LIMIT, Collapse, proxied, running
from benchmarks.load.process_tree import ProcessTree, cpu_ns
from benchmarks.routing.clients import Seen, closed_loop, open_loop
from benchmarks.routing.engine import Work
from benchmarks.routing.traffic import KINDS, Talk, system_prompts

ENGINES = 8
PACE = 4.0  # seconds of the model in one of the clock
WARM_UP = 24.0  # seconds of the model, in which caches fill
MEASURED = 48.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked: by so many clients without a pause, or at a rate."""

    clients: int = 0
    rate: float = 0.0  # conversations per second of the model


@dataclass(frozen=True, slots=True)
class Scene:
    """What a policy has to do with."""

    name: str
    kind: str  # of traffic
    load: Load
    slow: int = 0  # engines that are four times slower


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    per_second: float  # answers
    first_token: float  # median
    first_token_p99: float
    hit_rate: float  # of the tokens of all prompts
    imbalance: float  # prompts of the server that got most, by the mean
    cores: dict[str, float]  # that a process used


async def run(scene: Scene, policy: str, seed: int) -> Outcome:
    """Play a scene with a policy. The same seed brings the same prompts."""
    draw = random.Random(seed)
    systems = system_prompts(draw)

    def talk() -> Talk:
        return KINDS[scene.kind](draw, systems)

    async with fleet(scene.slow) as (engines, ports):
        urls = ",".join(f"vllm://127.0.0.1:{port}" for port in ports)
        async with proxied(urls, middleware="routing", routing=policy) as proxy:
            trees = {
                "engines": ProcessTree(engines).cpu_ns,
                "proxy": proxy.tree.cpu_ns,
                "clients": lambda: cpu_ns(os.getpid()),
            }
            asking = asyncio.create_task(_ask(proxy.port, scene.load, talk, draw))
            await asyncio.sleep(WARM_UP / PACE)
            began, before, used = time.monotonic(), await _work(ports), _read(trees)
            await asyncio.sleep(MEASURED / PACE)
            ended, after, used_then = time.monotonic(), await _work(ports), _read(trees)
            seen = await asking
    done = [_less(now, then) for now, then in zip(after, before, strict=True)]
    seconds = ended - began
    first = [each * PACE for each in seen.first_tokens(began, ended)]
    prompts = [each.prompts for each in done]
    return Outcome(
        per_second=seen.answered(began, ended) / seconds / PACE,
        first_token=quantile(first, 0.5),
        first_token_p99=quantile(first, 0.99),
        hit_rate=sum(each.cached for each in done) / sum(each.tokens for each in done),
        imbalance=max(prompts) * len(prompts) / sum(prompts),
        cores={name: (used_then[name] - used[name]) / 1e9 / seconds for name in trees},
    )


async def _ask(port: int, load: Load, talk: Callable[[], Talk], draw: random.Random) -> Seen:
    seconds = (WARM_UP + MEASURED) / PACE
    if load.clients:
        return await closed_loop(port, load.clients, seconds, talk)
    return await open_loop(port, load.rate * PACE, seconds, talk, draw)


@asynccontextmanager
async def fleet(slow: int) -> AsyncIterator[tuple[int, list[int]]]:
    """Run the engines; yield their process and their ports."""
    argv = [sys.executable, "-m", "benchmarks.routing.fleet", "--engines", str(ENGINES)]
    async with running([*argv, "--slow", str(slow), "--pace", str(PACE)]) as process:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT)
        if not line:
            raise Collapse("the engines do not start")
        yield process.pid, [int(port) for port in line.split()]


async def _work(ports: list[int]) -> list[Work]:
    return list(await asyncio.gather(*map(_work_of, ports)))


async def _work_of(port: int) -> Work:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /work HTTP/1.1\r\nhost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    work = Work(**orjson.loads(await reader.readexactly(length)))
    writer.close()
    return work


def _less(now: Work, then: Work) -> Work:
    return Work(
        prompts=now.prompts - then.prompts,
        tokens=now.tokens - then.tokens,
        cached=now.cached - then.cached,
        busy=now.busy - then.busy,
        answered=now.answered - then.answered,
    )


def _read(trees: dict[str, Callable[[], int]]) -> dict[str, int]:
    return {name: read() for name, read in trees.items()}
