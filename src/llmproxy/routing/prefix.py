"""Sends a prompt where its beginning was read before: that server has it in its KV cache.

A prompt is cut into blocks; each block is known by the hash of everything up to its end, so
that one look finds the longest beginning that two prompts share. What is remembered are
hashes, never text, and only so many of them: the ones not asked for longest are forgotten.

Rule 1: a server with clearly more to do than the others is not worth its cache.
Rule 2: a beginning that nobody has seen goes where its hash says, so that the second prompt
        with it finds the first one's server also in another process.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from llmproxy.routing.policies import Load, bounded_hash, burden, least_load

BLOCK = 512  # bytes; about the 128 tokens of a few blocks of an engine's cache
MOST_BLOCKS = 128  # of one prompt: 64 KiB of it
MOST = 200_000  # blocks remembered: some 30 MB
OVERLOAD = 2.0  # times the mean burden of the servers, and
SLACK = 4.0  # this much more, before a server is given up

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
        chosen = self._longest(servers, blocks) or bounded_hash(servers, blocks[0])
        self._remember(blocks, chosen.name)
        return chosen

    def _longest(self, servers: Sequence[S], blocks: Sequence[bytes]) -> S | None:
        """Return who has read most of it, unless it is overloaded."""
        names = {server.name: server for server in servers}
        patience = OVERLOAD * sum(map(burden, servers)) / len(servers) + SLACK
        for block in reversed(blocks):
            homes = [names[name] for name in self._seen.get(block, ()) if name in names]
            able = [server for server in homes if burden(server) <= patience]
            if able:
                return min(able, key=burden)
        return None

    def _remember(self, blocks: Sequence[bytes], name: str) -> None:
        seen = self._seen
        for block in blocks:
            homes = seen.get(block)
            if homes is None:
                seen[block] = (name,)
            else:
                seen.move_to_end(block)
                if name not in homes:
                    seen[block] = (*homes[-3:], name)
        while len(seen) > self._most:
            seen.popitem(last=False)


def blocks_of(body: bytes) -> list[bytes]:
    """Return the names of the beginnings of a prompt, the shortest first.

    The prompt is taken as the bytes in which it came: what is not the same there is not the
    same to an engine's tokenizer either, but for spaces that no client library varies.
    """
    at = min((found for field in _FIELDS if (found := body.find(field)) >= 0), default=0)
    blocks: list[bytes] = []
    chained = b""
    for start in range(at, min(len(body) - BLOCK, at + BLOCK * MOST_BLOCKS) + 1, BLOCK):
        chained = hashlib.blake2b(chained + body[start : start + BLOCK], digest_size=12).digest()
        blocks.append(chained)
    return blocks
