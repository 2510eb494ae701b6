"""What `serve` says when it is up."""

from urllib.parse import urlsplit

from llmproxy import codec
from llmproxy.settings import Settings
from llmproxy.settings.upstreams import url_of

DEMO = "demo"  # the name that `serve --demo` gives its upstream
DEMO_MODEL = "llmproxy-demo"
_ASKED = codec.dumps(
    {
        "model": DEMO_MODEL,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
    }
).decode()


def banner(settings: Settings, address: str) -> str:
    """Return a few lines: where we listen, what stands behind us, what is off.

    `address` is a URL, or `unix:/path`.
    """
    lines = [
        f"llmproxy listens on {address}",
        *(f"  upstream  {each.name}  {url_of(each)}" for each in settings.upstreams),
        f"  layers    {', '.join(settings.chain) or 'none: the frame alone'}",
        f"  store     {settings.store}",
        f"  off       {', '.join(_off(settings)) or 'nothing'}",
    ]
    if any(upstream.name == DEMO for upstream in settings.upstreams):
        lines += ["", "Try it:", "", f"  {curl_line(address, asked=settings.auth != 'off')}", ""]
    return "\n".join(lines)


def _off(settings: Settings) -> list[str]:
    off = []
    if settings.auth == "off":
        off.append("auth (everybody who can connect may ask)")
    if not (settings.limits or settings.budget):
        off.append("limits (LLMPROXY_LIMITS)")
    if settings.admin_key is None:
        off.append("admin API (LLMPROXY_ADMIN_KEY)")
    if settings.tls_cert is None and not settings.host.startswith("unix:"):
        off.append("TLS (LLMPROXY_TLS_CERT)")
    if not settings.cors_origins:
        off.append("CORS (LLMPROXY_CORS_ORIGINS)")
    return off


def curl_line(address: str, *, asked: bool = False) -> str:
    """Return a command that streams an answer from the demo, on one line.

    Where one is `asked` for a key, it is taken from the variable KEY.
    """
    key = ' -H "authorization: Bearer $KEY"' if asked else ""
    way = ""
    url = address
    if address.startswith("unix:"):
        way = f"--unix-socket {address.removeprefix('unix:')} "
        url = "http://localhost"
    else:
        parts = urlsplit(address)
        # Nobody can call "every address": on this machine the loopback one will do.
        if parts.hostname in ("0.0.0.0", "::"):
            url = f"{parts.scheme}://localhost:{parts.port}"
    return (
        f"curl -N {way}{url}/v1/chat/completions{key} -H 'content-type: application/json'"
        f" -d '{_ASKED}'"
    )
