"""The store that many hosts share: Redis, alone or behind Sentinel or as a cluster.

All keys lie under one hash tag: the limits of a request reach across keys and teams, and a
cluster can change several keys in one step only where they are together. One batch is one call
of one script, which counts by the clock of the server.

Each call has a number, and the server knows the last one of each process. A call whose answer
did not come is sent once more under its number, and is carried out once.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from secrets import token_hex
from typing import Any

from llmproxy.store import redis_client, redis_wire
from llmproxy.store.dispatch import LEASE, Refused
from llmproxy.store.interface import Unavailable
from llmproxy.store.operations import Leave, Nothing, Operation, Result, Settle
from llmproxy.store.queued import QueuedStore
from llmproxy.store.redis_wire import Garbled, Reply
from llmproxy.store.urls import Place

PREFIX = "llmproxy:1:{s}"  # 1: of what lies behind it; another layout gets another number
PATIENCE = 0.045  # seconds that a caller waits
ANSWER = 1.0  # seconds after which a connection is given up

SCRIPT = (files("llmproxy.store") / "meters.lua").read_bytes()


class RedisStore(QueuedStore):
    """Meters and records in Redis."""

    def __init__(
        self,
        place: Place,
        *,
        patience: float = PATIENCE,
        lease: float = LEASE,
        script: bytes = SCRIPT,
    ) -> None:
        events: Counter[str] = Counter()
        caller = _Caller(place, lease, script, events)
        super().__init__(caller, patience=patience, lease=lease, events=events)


class _Caller:
    """One connection, one owner, one call at a time."""

    def __init__(self, place: Place, lease: float, script: bytes, events: Counter[str]) -> None:
        self._place = place
        self._lease = lease
        self._script = script
        self._digest = sha1(script, usedforsecurity=False).hexdigest()
        self._events = events
        self._client: redis_client.Client | None = None
        self._owner = token_hex(8)
        self._number = 0  # of the last call

    async def carry(self, batch: list[Operation[Any]], *, again: bool) -> list[Result]:
        if again:
            batch = [each if isinstance(each, Settle) else Nothing() for each in batch]
        else:
            self._number += 1
        said = await self._said(redis_wire.call(batch, self._owner, self._number, self._lease))
        if said.state == "gone":
            # We were away for longer than our lease, or the server has lost its memory. What we
            # held has come back or is lost; nobody may give it back once more.
            self._owner, self._number = token_hex(8), 1
            said = await self._said(redis_wire.call(batch, self._owner, 1, self._lease))
        if said.state == "done" and not again:
            raise Unavailable  # somebody on the way has sent it twice: ask for what became of it
        try:
            return redis_wire.results(batch, said, self._owner)
        except Garbled as exc:
            raise Refused from exc

    async def aclose(self) -> None:
        if self._client is None:
            return
        self._number += 1
        leaving = redis_wire.call([Leave()], self._owner, self._number, self._lease)
        with suppress(Unavailable):
            await self._said(leaving)
        await self._disconnect()

    async def _said(self, call: list[bytes]) -> Reply:
        try:
            client = await self._connected()
            async with asyncio.timeout(ANSWER):
                try:
                    answer = await redis_client.command(
                        client, "EVALSHA", self._digest, 1, PREFIX, *call
                    )
                except redis_client.NoScriptError:
                    self._events["reloaded"] += 1
                    answer = await redis_client.command(
                        client, "EVAL", self._script, 1, PREFIX, *call
                    )
            said = redis_wire.reply(answer, self._owner, self._number)
        except (*redis_client.FAILURES, Garbled) as exc:
            await self._disconnect()
            raise (Unavailable if redis_client.will_pass(exc) else Refused) from exc
        except BaseException:
            await self._disconnect()  # an answer that nobody has read must never meet a reader
            raise
        if said.garbage:
            self._events["garbage"] += said.garbage
        return said

    async def _connected(self) -> redis_client.Client:
        if self._client is None:
            self._client = redis_client.new_client(self._place)
            async with asyncio.timeout(redis_client.CONNECT):
                await redis_client.command(self._client, "EXISTS", PREFIX)
        return self._client

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(*redis_client.FAILURES):
                await redis_client.close(client)
