"""The KV cache of one engine, by blocks. Pure.

Rule 1: a block is known by all the text up to its end; only full blocks are shared.
Rule 2: blocks of sequences at work cannot be had by others. The rest stays until the room is
        needed, and goes by the time of its last use; of one sequence the end goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

TOKEN = 4  # bytes of text
BLOCK = 64  # tokens

Key = int


def tokens_in(text: bytes) -> int:
    """Return how many tokens a text is: a fixed size is as good as a real tokenizer here."""
    return -(-len(text) // TOKEN)


def keys_of(text: bytes) -> list[Key]:
    """Return the names of the full blocks of a text."""
    size = BLOCK * TOKEN
    keys: list[Key] = []
    before = 0
    for start in range(0, len(text) - size + 1, size):
        before = hash((before, text[start : start + size]))
        keys.append(before)
    return keys


class KvCache:
    """So many blocks, in use or kept from earlier."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._used: dict[Key, int] = {}  # by how many sequences
        self._kept: OrderedDict[Key, None] = OrderedDict()  # the next to go comes first
        self._nameless = 0  # blocks that are not full

    @property
    def use(self) -> float:
        """The share that sequences at work hold, as vLLM tells it."""
        return (len(self._used) + self._nameless) / self.blocks

    def __len__(self) -> int:
        return len(self._used) + self._nameless + len(self._kept)

    def take(self, keys: Sequence[Key], nameless: int = 1) -> int | None:
        """Take the blocks of a sequence; return how many of the first were there.

        None when there is no room for it now: nothing was taken.
        """
        there = 0
        for key in keys:
            if key not in self._used and key not in self._kept:
                break
            there += 1
        new = [key for key in keys if key not in self._used]
        if len(self._used) + self._nameless + len(new) + nameless > self.blocks:
            return None
        for key in keys:
            self._used[key] = self._used.get(key, 0) + 1
            self._kept.pop(key, None)
        self._nameless += nameless
        while len(self) > self.blocks:
            self._kept.popitem(last=False)
        return there

    def give_back(self, keys: Iterable[Key], nameless: int = 1) -> None:
        """Let go of the blocks of a sequence; they stay as long as nobody needs the room."""
        self._nameless -= nameless
        for key in reversed(list(keys)):
            self._used[key] -= 1
            if not self._used[key]:
                del self._used[key]
                self._kept[key] = None
