"""The grammar of an upstream's URL: from `http://gpu1:8000/v1` to host, port and paths."""

import re

from llmproxy.protocol.endpoints import is_normal
from llmproxy.protocol.presets import GENERIC, PRESETS, Preset
from llmproxy.records import Upstream
from llmproxy.settings.addresses import is_forbidden, is_host, socket_path
from llmproxy.settings.faults import Refused

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)([?#].*)?", re.DOTALL)
_PLACE = re.compile(r"(?:\[([^\[\]]*)\]|([^:]*))(?::([^:]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9-]{1,63}")
# What people paste as the base URL of a client: it ends in a version.
_BASE_URL = re.compile(r"(.*)(/v\d+\w*(?:/openai)?)", re.ASCII)

_EXAMPLE = "such as http://gpu1:8000, unix:/run/vllm.sock or ollama://"


def is_url(text: str) -> bool:
    """Tell whether a text has the shape of a URL, whatever is wrong with it."""
    return text.startswith("unix:") or _URL.fullmatch(text) is not None


def server_at(url: str, name: str, *, wants_tls: bool) -> Upstream:
    """Return the server that a URL names, as its preset knows it."""
    if url.startswith("unix:"):
        return Upstream(
            name=name,
            scheme="unix",
            host="",
            port=0,
            path=socket_path(url),
            health=GENERIC.health,
            management=GENERIC.management,
        )
    if not url.isprintable() or not url.isascii() or " " in url:
        raise _refused("a URL has printable ASCII only, and no spaces")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused(f"must be a URL, {_EXAMPLE}")
    kind, place, path, rest = match[1].lower(), match[2], match[3], match[4]
    if kind not in PRESETS and kind not in ("http", "https"):
        known = ", ".join(f"{scheme}://" for scheme in ("http", "https", *PRESETS))
        raise _refused(f"unknown scheme {kind}://; there are {known} and unix:")
    if "@" in place or "@" in path:
        raise _refused("a URL must not carry a user or a password; use ;key=env:NAME")
    if rest:
        raise _refused("a URL must not have a query or a fragment")
    preset = PRESETS.get(kind, GENERIC)
    host, port = _host_and_port(place, kind, preset)
    tls = _speaks_tls(kind, preset, port, wants_tls=wants_tls)
    root, api = _paths(path, preset)
    return Upstream(
        name=name,
        scheme="https" if tls else "http",
        host=host,
        port=port or (443 if kind == "https" else preset.port),
        root=root,
        api=api,
        preset=kind if kind in PRESETS else "http",
        health=preset.health,
        lists_models=preset.lists_models,
        native=preset.native,
        management=preset.management,
    )


def _host_and_port(place: str, kind: str, preset: Preset) -> tuple[str, int | None]:
    match = _PLACE.fullmatch(place)
    if match is None:
        raise _refused("its host and port cannot be told apart; IPv6 addresses need brackets")
    bracketed, plain, port_text = match[1], match[2], match[3]
    host = bracketed if bracketed is not None else plain
    port = None
    if port_text is not None:
        if not _PORT.fullmatch(port_text) or not 1 <= int(port_text) <= 65535:
            raise _refused("its port must be a number from 1 to 65535")
        port = int(port_text)
    if not host:
        if kind not in PRESETS:
            raise _refused(f"must name a host, {_EXAMPLE}")
        if not preset.host:
            example = (
                "region, such as bedrock://us-east-1"
                if kind == "bedrock"
                else (f"resource, such as {kind}://my-resource")
            )
            raise _refused(f"must name a {example}")
        host = preset.host
    if (bracketed is not None and ":" not in host) or not is_host(host):
        raise _refused("its host is neither a name nor an address")
    if is_forbidden(host):
        raise _refused("link-local addresses and metadata services are never called")
    if preset.domain and "." not in host:
        if not _LABEL.fullmatch(host):
            raise _refused("its host is neither a name nor an address")
        host = preset.domain.format(host)
    return host.lower(), port


def _speaks_tls(kind: str, preset: Preset, port: int | None, *, wants_tls: bool) -> bool:
    if kind in ("http", "https"):
        return kind == "https"
    # A preset's scheme does not say it. Nobody sets up plain HTTP on 443, and whoever names
    # certificates means to check them.
    return preset.tls or port == 443 or wants_tls


def _paths(path: str, preset: Preset) -> tuple[str, str]:
    """Return what stands before native paths, and what stands in the place of /v1."""
    path = path.removesuffix("/")
    if not path:
        return "", preset.api
    if not is_normal(path.encode()):
        raise _refused("its path is not in normal form: no empty, . or .. parts, no escaped /")
    base = _BASE_URL.fullmatch(path)
    if base is not None:
        return base[1], path
    return path, path + preset.api


def _refused(cure: str) -> Refused:
    return Refused(("", cure))  # the value is shown by whoever knows the whole entry
