"""A prompt goes where its beginning was read before."""

from collections import Counter
from dataclasses import dataclass

from llmproxy.routing.policies import burden_of
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

    @property
    def burden(self) -> float:
        return burden_of(self)


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


def busy(servers: list[Seen], memory: PrefixMemory, *bodies: bytes) -> list[int]:
    """Return how many requests each server has when all of these are on their way at once."""
    for body in bodies:
        memory.choose(servers, body).inflight += 1
    return sorted(server.inflight for server in servers)


def test_what_everybody_begins_with_keeps_nobody_idle() -> None:
    """One system prompt for all is soon read everywhere, whatever part of a prompt it is."""
    for own in ("x" * 600, "x" * 30_000):
        servers = [Seen(name) for name in "abcdefgh"]
        bodies = [prompt(SYSTEM, f"{number:04}", own) for number in range(256)]

        least, *_, most = busy(servers, PrefixMemory(), *bodies)

        assert least >= 24 and most <= 40


def test_a_beginning_that_many_have_gets_more_servers_than_others() -> None:
    """The others stay with one, as long as it does not have much more to do."""
    memory = PrefixMemory()
    servers = [Seen(name) for name in "abcdefgh"]
    hot = [prompt(SYSTEM, str(number) * 700) for number in range(100)]
    cold = [prompt(f"{number:04}" * 700) for number in range(28)]

    assert busy(servers, memory, *hot, *cold)[-1] < 30
    assert {len(memory._seen[blocks_of(body)[-1]]) for body in cold} == {1}
    assert len(memory._seen[blocks_of(hot[0])[0]]) >= 4


def given_up_at(blocks: int) -> int:
    """Return with how many requests a server is passed over that has read so many of 40 blocks."""
    for inflight in range(9, 100):
        memory = PrefixMemory()
        home, *_ = servers = [Seen(name, inflight=9) for name in "abcdefgh"]
        memory.choose([home], prompt("y" * BLOCK * blocks))
        home.inflight = inflight
        if (
            memory.choose(servers, prompt("y" * BLOCK * blocks, "z" * BLOCK * (40 - blocks)))
            != home
        ):
            return inflight
    raise AssertionError("it never is")


def test_part_of_a_prompt_is_worth_part_of_the_wait() -> None:
    """The others have nine, and one of them is where the rest of it belongs."""
    assert given_up_at(4) <= 10
    assert 12 <= given_up_at(20) <= 15
    assert 18 <= given_up_at(40) <= 24


def test_processes_that_know_nothing_of_each_other_agree() -> None:
    """Also where all prompts begin alike, once both have seen that."""
    servers = [Seen(name) for name in "abcdefgh"]
    one, other = PrefixMemory(), PrefixMemory()
    for memory in (one, other):
        for number in range(20):
            memory.choose(servers, prompt(SYSTEM[:1200], f"{number} is seen by both. " * 200))
    texts = [prompt(SYSTEM[:1200], f"{number:05}" * 800) for number in range(100, 140)]

    homes = [one.choose(servers, text).name for text in texts]
    assert [other.choose(servers, text).name for text in texts] == homes
    assert len(set(homes)) > 4


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
