"""The head that an engine gets: what of the caller's goes on, and what is ours to say.

Rule 1: nothing that identifies the caller to us, or could choose another destination or
        credential, goes on.
Rule 2: names with an underscore are dropped. Some servers read `X_Tenant` as `X-Tenant`.
"""

from functools import lru_cache

from llmproxy.headers import HOP_BY_HOP
from llmproxy.records import Upstream
from llmproxy.types import Header

# Said anew by us or by the transport, or none of an engine's business.
_DROPPED = HOP_BY_HOP | {
    b"accept-encoding",
    b"api-key",
    b"authorization",
    b"content-length",
    b"cookie",
    b"endpoint-load-metrics-format",
    b"expect",
    b"forwarded",
    b"host",
    b"via",
    b"x-api-key",
    b"x-content-sha256",  # with what a request was signed for us
    b"x-goog-api-key",  # where Google's clients have their key
    b"x-goog-user-project",
    b"x-real-ip",
    b"x-request-id",
}
# What is ours to say; a prefix or a user that a stranger has been forwarded with, nobody says.
_OURS = (b"x-llmproxy-", b"x-forwarded-")


def request_headers(
    headers: list[Header], upstream: Upstream, origin: list[Header]
) -> list[Header]:
    """Return the headers for one attempt, complete but for the framing and the request's id."""
    named = None
    kept: list[Header] = [(b"host", upstream.authority.encode())]
    for header in headers:
        name = header[0]
        if name in _DROPPED:
            if name == b"connection":
                named = (named or b"") + b"," + header[1]
            continue
        if b"_" in name or name.startswith(_OURS):
            continue
        kept.append(header)
    if named is not None and (tokens := _tokens(named)):
        kept = [kept[0], *(header for header in kept[1:] if header[0] not in tokens)]
    if upstream.credentials:
        ours = {name for name, _ in upstream.credentials}
        kept = [header for header in kept if header[0] not in ours]
    kept.append((b"accept-encoding", b"identity"))
    kept += origin
    kept += upstream.credentials
    return kept


@lru_cache(maxsize=64)
def _tokens(connection: bytes) -> frozenset[bytes]:
    """Return the names that Connection headers declare hop-by-hop, content-type spared.

    Without its type no engine could read the body: taking it away is an attack, not a wish.
    """
    tokens = {token.strip().lower() for token in connection.split(b",")}
    return frozenset(tokens - {b"", b"close", b"keep-alive", b"content-type"})


def origin_headers(
    headers: list[Header], *, client: str | None, scheme: str, trusted: bool, via: bytes
) -> list[Header]:
    """Say where a request came from and through whom.

    What the caller says of that itself counts only when it is a proxy that we trust.
    """
    said: dict[bytes, bytes] = {}
    through = via
    host = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"via":
            through = value + b", " + via
        elif trusted and name in _ORIGIN:
            said[name] = said[name] + b", " + value if name in said else value
    return _origin(
        client or "",
        said.get(b"x-forwarded-for", b""),
        said.get(b"x-forwarded-proto", b"") or scheme.encode(),
        said.get(b"x-forwarded-host", b"") or host,
        said.get(b"forwarded", b""),
        through,
    )


_ORIGIN = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})


@lru_cache(maxsize=256)
def _origin(
    client: str, chain: bytes, proto: bytes, host: bytes, forwarded: bytes, via: bytes
) -> list[Header]:
    address = client.encode("ascii", "replace")
    node = b'"[%b]"' % address if b":" in address else address or b"unknown"
    safe_host = host.replace(b"\\", b"").replace(b'"', b"")
    element = b'for=%b;host="%b";proto=%b' % (node, safe_host, proto)
    result = [
        (b"forwarded", b"%b, %b" % (forwarded, element) if forwarded else element),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", proto),
        (b"via", via),
    ]
    # A peer on a unix socket has no address; what it says of those before it still counts.
    if hops := b", ".join(each for each in (chain, address) if each):
        result.append((b"x-forwarded-for", hops))
    return result


def target_of(raw_path: bytes, query: bytes, upstream: Upstream, *, native: bool) -> bytes:
    """Return the request target at one upstream."""
    if native:
        path = upstream.root.encode() + raw_path
    else:
        path = upstream.api.encode() + raw_path[len(b"/v1") :]
    return path + b"?" + query if query else path
