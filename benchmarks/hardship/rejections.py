"""1,000 requests a second that are refused, one kind after the other.

Beside each kind the same client asks a server that does nothing but answer: what that one needs
is the machine's doing and the client's.
"""

import asyncio

from benchmarks.hardship.findings import Finding, quantile
from benchmarks.hardship.stage import Collapse, Proxy, listening, probed, proxied

RATE = 1000
SECONDS = 8.0
SOON = 5.0  # ms
SHARE = 0.5  # of the limit: a bare server that needs more shows a machine that is too busy

ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
KINDS: dict[str, tuple[bytes, bytes]] = {  # the status, and the request that gets it
    "401 no admin key": (b"401", b"POST /sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"),
    "404 unknown path": (b"404", b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"),
    "413 announced length": (b"413", ASK + b"content-length: 99999999\r\n\r\n"),
    "400 by the parser": (b"400", b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
}
FULL = "503 all connections in use"
CAP = 4


async def findings(minutes: float) -> list[Finding]:
    """Every kind of refusal that there is without keys."""
    found: list[Finding] = []
    async with listening("benchmarks.hardship.bare_server") as bare:
        async with proxied("vllm://127.0.0.1:9") as proxy:
            for kind, (status, request) in KINDS.items():
                found += await _refused(kind, proxy, bare, status, request)
            troubles = proxy.troubles()
        async with proxied("http://127.0.0.1:9", max_connections=CAP, timeout_head=300) as proxy:
            busy = [await _half_a_head(proxy.port) for _ in range(CAP)]
            found += await _refused(FULL, proxy, bare, b"503", KINDS["404 unknown path"][1])
            for writer in busy:
                writer.close()
            troubles += proxy.troubles()
    return [*found, Finding(what="crashes in the log", measured=troubles, unit="", limit=0)]


async def _refused(
    kind: str, proxy: Proxy, bare: int, status: bytes, request: bytes
) -> list[Finding]:
    plain = KINDS["404 unknown path"][1]
    control = await probed(bare, plain, rate=RATE, seconds=SECONDS / 2)
    used = proxy.tree.cpu_ns()
    seen = await probed(proxy.port, request, rate=RATE, seconds=SECONDS)
    used = proxy.tree.cpu_ns() - used
    if set(seen.statuses) - {status.decode()}:
        raise Collapse(f"{kind}: answered with {seen.statuses}")
    floor = quantile(control.waits, 0.99)
    late = quantile(seen.late, 0.99)
    doubt = ""
    if max(floor, late) > SOON * SHARE:
        doubt = f"the bare server needs {floor:.1f} ms, the client is {late:.1f} ms late"
    return [
        Finding(
            what=f"{kind}: p99",
            measured=quantile(seen.waits, 0.99),
            unit="ms",
            limit=SOON,
            doubt=doubt,
        ),
        Finding(what=f"{kind}: p50", measured=quantile(seen.waits, 0.5), unit="ms"),
        Finding(what=f"{kind}: p99 of the bare server", measured=floor, unit="ms"),
        Finding(what=f"{kind}: requests without an answer", measured=seen.lost, unit="", limit=0),
        Finding(what=f"{kind}: CPU of each", measured=used / 1000 / (RATE * SECONDS), unit="µs"),
    ]


async def _half_a_head(port: int) -> asyncio.StreamWriter:
    """Open a connection that is busy, because its request has begun."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n")
    await writer.drain()
    return writer
