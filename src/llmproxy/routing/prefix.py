"""Sends a prompt where its beginning was read before: that server has it in its KV cache.

A prompt is cut into blocks; each block is known by the hash of everything up to its end, so
that a few looks find how much of a prompt each server has read. What is remembered are hashes,
never text, and only so many of them: the ones not asked for longest are forgotten.

Rule 1: what a server has read is weighed against what it has to do. A whole prompt is worth as
        much as the servers have to do on the average; a tenth of one, a tenth of that. So what
        all prompts have in common keeps nobody busy and nobody idle.
Rule 2: a beginning that nobody has seen goes where its hash says, so that the second prompt
        with it finds the first one's server also in another process. That is worth something
        too, and no more: a server with clearly more to do than the others is passed over.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from llmproxy.routing.policies import Load, highest_score, least_load

BLOCK = 512  # bytes; about the 128 tokens of a few blocks of an engine's cache
MOST_BLOCKS = 128  # of one prompt: 64 KiB of it
LOOK_FIRST = 4096  # bytes, where nearly every prompt begins: to look through 16 MiB takes 20 ms
MOST = 200_000  # blocks remembered: some 30 MB
WORTH = 1.0  # times the mean burden of the servers, and
SLACK = 4.0  # this much more, that a server may have to do which has read the whole prompt
BELONGS = 0.25  # of that, for the one where the hash says
MOST_HOMES = 16  # servers remembered for one beginning

S = TypeVar("S", bound=Load)

_FIELDS = (b'"messages"', b'"prompt"', b'"input"', b'"inputs"')


class PrefixMemory:
    """Which beginnings were read where."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def choose(self, servers: Sequence[S], body: bytes) -> S:
        """Return the server for a prompt, and remember that it went there."""
        blocks = blocks_of(body)
        if not blocks:
            return least_load(servers)  # too short to be worth a cache
        shares = self._shares(blocks)
        known = max(shares.values(), default=0.0)
        # The first block that is new: what all prompts begin with would send them to one place.
        new = min(round(known * len(blocks)), len(blocks) - 1)
        belongs = highest_score(servers, blocks[new]).name
        shares[belongs] = max(shares.get(belongs, 0.0), BELONGS)
        burdens = [server.burden for server in servers]
        worth = WORTH * sum(burdens) / len(burdens) + SLACK
        costs = [
            bears - worth * shares.get(server.name, 0.0)
            for server, bears in zip(servers, burdens, strict=True)
        ]
        chosen = servers[costs.index(min(costs))]
        self._remember(blocks, chosen.name)
        return chosen

    def _shares(self, blocks: Sequence[bytes]) -> dict[str, float]:
        """Return how much of a prompt each server has read, from 0 to 1."""
        seen, count = self._seen, len(blocks)
        shares: dict[str, float] = {}
        before: tuple[str, ...] = ()
        for number in range(count, 0, -1):
            homes = seen.get(blocks[number - 1], ())
            if homes != before:  # most blocks of a prompt were read by the same servers
                before = homes
                for name in homes:
                    shares.setdefault(name, number / count)
        return shares

    def _remember(self, blocks: Sequence[bytes], name: str) -> None:
        seen = self._seen
        alone = (name,)
        for block in blocks:
            homes = seen.get(block)
            if homes is None:
                seen[block] = alone
            else:
                seen.move_to_end(block)
                if name not in homes:
                    seen[block] = (*homes[1 - MOST_HOMES :], name)
        while len(seen) > self._most:
            seen.popitem(last=False)


def blocks_of(body: bytes) -> list[bytes]:
    """Return the names of the beginnings of a prompt, the shortest first.

    The prompt is taken as the bytes in which it came: what is not the same there is not the
    same to an engine's tokenizer either, but for spaces that no client library varies.
    """
    at = _first_field(body, LOOK_FIRST)
    if at < 0:
        at = max(0, _first_field(body, len(body)))
    blocks: list[bytes] = []
    chained = b""
    for start in range(at, min(len(body) - BLOCK, at + BLOCK * MOST_BLOCKS) + 1, BLOCK):
        chained = hashlib.blake2b(chained + body[start : start + BLOCK], digest_size=12).digest()
        blocks.append(chained)
    return blocks


def _first_field(body: bytes, end: int) -> int:
    """Return where the first of the fields of a prompt stands; -1 = nowhere before the end."""
    places = [place for field in _FIELDS if (place := body.find(field, 0, end)) >= 0]
    return min(places, default=-1)
