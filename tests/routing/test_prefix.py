"""A prompt goes where its beginning was read before."""

from collections import Counter
from dataclasses import dataclass

from llmproxy.routing.prefix import BLOCK, PrefixMemory, blocks_of
from llmproxy.routing.session import session_of


@dataclass
class Seen:
    """A server as a policy sees it."""

    name: str
    weight: float = 1.0
    inflight: int = 0
    others: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    latency: float = 0.0


def prompt(*parts: str) -> bytes:
    """Return a body with a prompt in it."""
    return (
        b'{"model":"m","messages":[{"role":"user","content":"' + "".join(parts).encode() + b'"}]}'
    )


SYSTEM = "You are a helpful assistant. " * 100


def test_prompts_with_the_same_beginning_share_a_server() -> None:
    """Whatever comes after it."""
    memory = PrefixMemory()
    servers = [Seen(name) for name in "abcdefgh"]

    got = {memory.choose(servers, prompt(SYSTEM, str(n) * 700)).name for n in range(50)}

    assert len(got) == 1


def test_prompts_that_share_nothing_are_spread() -> None:
    """No server is everybody's home."""
    memory = PrefixMemory()
    servers = [Seen(name) for name in "abcd"]

    got = Counter(memory.choose(servers, prompt(str(n) * 3000)).name for n in range(400))

    assert min(got.values()) > 50


def test_the_longest_beginning_wins() -> None:
    """A conversation goes on where its last turn was."""
    memory = PrefixMemory()
    servers = [Seen("a"), Seen("b")]
    first = SYSTEM + "x" * 2000
    home = memory.choose(servers, prompt(first))
    other = next(server for server in servers if server is not home)
    memory.choose([other], prompt(SYSTEM, "y" * 2000))

    assert memory.choose(servers, prompt(first, "z" * 2000)) is home
    assert memory.choose(servers, prompt(SYSTEM, "y" * 2000, "z" * 600)) is other


def test_a_server_with_too_much_to_do_is_given_up() -> None:
    """Its cache is not worth the wait."""
    memory = PrefixMemory()
    servers = [Seen("a"), Seen("b"), Seen("c")]
    home = memory.choose(servers, prompt(SYSTEM))
    home.inflight = 40

    assert memory.choose(servers, prompt(SYSTEM)) is not home


def test_a_server_that_is_gone_is_not_chosen() -> None:
    """Memory of it does no harm."""
    memory = PrefixMemory()
    servers = [Seen("a"), Seen("b")]
    home = memory.choose(servers, prompt(SYSTEM))
    left = [server for server in servers if server is not home]

    assert memory.choose(left, prompt(SYSTEM)) is left[0]


def test_memory_is_bounded() -> None:
    """The beginnings not asked for longest are forgotten."""
    memory = PrefixMemory(most=100)
    servers = [Seen("a"), Seen("b")]
    for number in range(500):
        memory.choose(servers, prompt(str(number) * 2000))

    assert len(memory) <= 100


def test_blocks_begin_where_the_prompt_does() -> None:
    """What stands before it (the model, a temperature) is not part of it."""
    one = b'{"model":"m",' + prompt(SYSTEM)[13:]
    other = b'{"temperature":0.5,"model":"m",' + prompt(SYSTEM)[13:]

    assert blocks_of(one) == blocks_of(other) != []
    assert blocks_of(prompt("short")) == []
    assert len(blocks_of(prompt("x" * BLOCK * 1000))) <= 129


def test_a_session_is_looked_for_in_a_fixed_order() -> None:
    """Headers first, the `user` of the body last."""
    assert session_of({b"x-session-id": b"s", b"x-user-id": b"u"}, "body") == b"x-session-id=s"
    assert session_of({b"x-user-id": b"u"}, "body") == b"x-user-id=u"
    assert session_of({}, "body") == b"user=body"
    assert session_of({}, None) is None
