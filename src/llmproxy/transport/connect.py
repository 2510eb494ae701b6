"""Which transport goes to which upstream."""

from typing import Literal

from llmproxy.records import Upstream
from llmproxy.transport.http1 import Http1Transport
from llmproxy.transport.interface import Resent, Transport
from llmproxy.transport.limits import PoolLimits

Kind = Literal["http1", "httpx"]


def transport_for(
    upstream: Upstream,
    *,
    kind: Kind | None = None,
    limits: PoolLimits | None = None,
    resent: Resent = lambda: None,
) -> Transport:
    """Return the transport for an upstream; it belongs to the running event loop.

    Ours, unless the way leads through an outbound proxy, which only the httpx one can take.
    """
    limits = limits or PoolLimits()
    if kind is None:
        kind = "httpx" if upstream.proxy is not None else "http1"
    if kind == "http1":
        return Http1Transport(upstream, limits, resent=resent)
    # Imported when it is wanted: 60 ms of start-up that most proxies have no use for.
    from llmproxy.transport.httpx_client import HttpxTransport

    return HttpxTransport(upstream, limits, resent=resent)
