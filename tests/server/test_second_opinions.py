"""Nothing that nginx or HAProxy refuses is accepted here.

The same bytes go through all three: the corpus, and ordinary requests with one byte changed.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.server.corpus import BODY, CHUNKED, FRAMING, LENGTH, chunks, get, post
from tests.server.corpus_of_heads import HEADS, PATHS
from tests.server.good_requests import GOOD
from tests.server.peers import HAPROXY, NGINX, Peer, running_peer
from tests.support.client import raw_client
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted
from tests.support.wire import PATIENCE, PeerLeft

REFUSED = [*FRAMING, *HEADS]
PARALLEL = 32
UNDECIDED = 1.5  # seconds; whoever has not answered by then waits for more
STRANGE = b'\0\t\n\x0b\x0c\r "#%+,-./0:;=@A\\_\x7f\x80\xff'
ORDINARY = (
    post(LENGTH),
    chunks(b"7;a=b\r\n" + BODY + b"\r\n0\r\nT: u\r\n\r\n"),
    get(b"/v1/models")[:-2] + b"X: a\r\n\r\n",
)
PASSED_ON = 502  # the peer took it; it is the engine behind it that did not like it


def changed_by_one_byte() -> Iterator[bytes]:
    """Yield what is left of the ordinary requests with a byte put in, replaced, doubled or lost."""
    for whole in ORDINARY:
        for at in range(len(whole)):
            for byte in STRANGE:
                yield whole[:at] + bytes([byte]) + whole[at:]
                yield whole[:at] + bytes([byte]) + whole[at + 1 :]
            yield whole[:at] + whole[at + 1 :]
            yield whole[:at] + whole[at : at + 1] + whole[at:]


async def status_of(port: int, raw: bytes, patience: float) -> int | None:
    """Return the status of the final answer; 0 for a closed connection, None for no answer."""
    async with raw_client(port=port) as client:
        client.send(raw)
        try:
            async with asyncio.timeout(patience):
                return (await client.head()).status
        except PeerLeft:
            return 0
        except TimeoutError:
            return None


async def statuses(
    port: int, raws: Iterable[bytes], patience: float = UNDECIDED
) -> dict[bytes, int | None]:
    """Ask for each, some at a time."""
    found: dict[bytes, int | None] = {}
    waiting = iter(raws)

    async def work() -> None:
        for raw in waiting:
            found[raw] = await status_of(port, raw, patience)

    await asyncio.gather(*(work() for _ in range(PARALLEL)))
    return found


async def accepted_here() -> list[bytes]:
    """Return what we serve of the corpus and of every seventh changed request."""
    changed = list(dict.fromkeys(changed_by_one_byte()))[::7]
    known = [good.raw for good in GOOD] + [case.raw for case in [*REFUSED, *PATHS]]
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        found = await statuses(proxy.port, known + changed)
    return [raw for raw, status in found.items() if status == 200]


@pytest.mark.parametrize("peer", [NGINX, HAPROXY], ids=lambda peer: peer.name)
async def test_what_it_refuses_is_refused_here(peer: Peer, tmp_path: Path) -> None:
    """Two that read a request differently are a hole; the stricter one is right."""
    if peer.program is None:
        assert peer is not NGINX or os.environ.get("CI") != "true", "nginx is not installed"
        pytest.skip(f"{peer.name} is not installed")
    ours = await accepted_here()
    async with running_peer(peer, tmp_path) as port:
        theirs = await statuses(port, ours, PATIENCE)  # those are complete

    refused = {raw: s for raw, s in theirs.items() if s is not None and s not in (200, PASSED_ON)}
    assert refused == {}
    assert len(ours) > 400
    assert list(theirs.values()).count(None) == 0


async def test_they_do_refuse_what_is_broken(tmp_path: Path) -> None:
    """The comparison means something: the peer sees through most of the corpus itself."""
    if NGINX.program is None:
        assert os.environ.get("CI") != "true", "nginx is not installed"
        pytest.skip("nginx is not installed")
    async with running_peer(NGINX, tmp_path) as port:
        found = await statuses(port, [case.raw for case in REFUSED])

    refused = [status for status in found.values() if status is not None and status != 200]
    assert len(refused) > len(REFUSED) / 2


def test_ordinary_requests_are_framed_in_both_ways() -> None:
    """What is changed are all kinds of request."""
    assert sum(CHUNKED in whole for whole in ORDINARY) == 1
    assert sum(LENGTH in whole for whole in ORDINARY) == 1
