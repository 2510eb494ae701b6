"""The grammar of an upstream's URL: from `http://gpu1:8000/v1` to host, port and paths."""

import re
from dataclasses import replace

from llmproxy.protocol.endpoints import is_normal
from llmproxy.protocol.presets import GENERIC, PRESETS, Preset
from llmproxy.records import Upstream
from llmproxy.settings.addresses import is_host, socket_path
from llmproxy.settings.faults import Refused
from llmproxy.transport.never_called import address_of, is_forbidden

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)([?#].*)?", re.DOTALL)
_PLACE = re.compile(r"(?:\[([^\[\]]*)\]|([^:]*))(?::([^:]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9-]{1,63}")
# What people paste as the base URL of a client: it ends in a version.
_BASE_URL = re.compile(r"(.*)(/v\d+\w*(?:/openai)?)", re.ASCII)

# A template: what stands before the + says how servers are found, what stands behind it what
# they are.
_FOUND_BY = ("dns", "srv", "consul")
_SERVICE = re.compile(r"/([A-Za-z0-9._~-]{1,128})/?")
_LABELS_OF_A_SERVICE = re.compile(r"(?:_[^.]*\.)+")
_CONSUL_PORT = 8500

_EXAMPLE = "such as http://gpu1:8000, unix:/run/vllm.sock or ollama://"


def is_url(text: str) -> bool:
    """Tell whether a text has the shape of a URL, whatever is wrong with it."""
    return text.startswith(("unix:", "file:")) or _URL.fullmatch(text) is not None


def server_at(url: str, name: str, *, wants_tls: bool) -> Upstream:
    """Return the server that a URL names, as its preset knows it, or the template for several."""
    if url.startswith("unix:"):
        return Upstream(
            name=name,
            scheme="unix",
            host="",
            port=0,
            path=socket_path(url),
            health=GENERIC.health,
            metrics=GENERIC.metrics,
            management=GENERIC.management,
        )
    if url.startswith("file:"):
        return _listed_in(url, name)
    if not url.isprintable() or not url.isascii() or " " in url:
        raise _refused("a URL has printable ASCII only, and no spaces")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused(f"must be a URL, {_EXAMPLE}")
    scheme, place, path, rest = match[1].lower(), match[2], match[3], match[4]
    found_by, plus, kind = scheme.rpartition("+")
    if kind not in PRESETS and kind not in ("http", "https"):
        known = ", ".join(f"{scheme}://" for scheme in ("http", "https", *PRESETS))
        raise _refused(f"unknown scheme {kind}://; there are {known}, unix: and file:")
    if plus and found_by not in _FOUND_BY:
        known = ", ".join(f"{way}+" for way in _FOUND_BY)
        raise _refused(f"unknown way to find servers {found_by}+; there are {known} and file:")
    if "@" in place or "@" in path:
        raise _refused("a URL must not carry a user or a password; use ;key=env:NAME")
    if rest:
        raise _refused("a URL must not have a query or a fragment")
    preset = PRESETS.get(kind, GENERIC)
    if found_by:
        return _template(found_by, kind, name, place, path, wants_tls=wants_tls)
    host, port = _host_and_port(place, kind, preset)
    tls = _speaks_tls(kind, preset, port, wants_tls=wants_tls)
    port = port or (443 if kind == "https" else preset.port)
    return _server(kind, name, host, port, path, tls=tls)


def _server(kind: str, name: str, host: str, port: int, path: str, *, tls: bool) -> Upstream:
    preset = PRESETS.get(kind, GENERIC)
    root, api = _paths(path, preset)
    return Upstream(
        name=name,
        scheme="https" if tls else "http",
        host=host,
        port=port,
        root=root,
        api=api,
        preset=kind if kind in PRESETS else "http",
        health=preset.health,
        lists_models=preset.lists_models,
        any_model=preset.any_model,
        metrics=preset.metrics,
        native=preset.native,
        management=preset.management,
    )


def _template(
    found_by: str, kind: str, name: str, place: str, path: str, *, wants_tls: bool
) -> Upstream:
    """Return where to look for servers, and what each of them is like."""
    preset = PRESETS.get(kind, GENERIC)
    if preset.hosted:
        raise _refused(f"{kind}:// is one service; nothing is looked for")
    if not place.partition(":")[0]:
        raise _refused(f"must name a host, such as {found_by}+{kind}://name")
    host, port = _host_and_port(place, kind, preset)
    if found_by == "consul":
        service = _SERVICE.fullmatch(path)
        if service is None:
            raise _refused("must end in the name of a service, such as consul+http://agent/llm")
        tls = _speaks_tls(kind, preset, None, wants_tls=wants_tls)
        agent = _server(kind, name, host, port or _CONSUL_PORT, "", tls=tls)
        return replace(agent, path=service[1], found_by=found_by)
    if address_of(host) is not None:
        raise _refused(f"{found_by}+ looks a name up, and this is an address")
    if found_by == "srv":
        if port is not None:
            raise _refused("the port of an srv+ name stands in its records")
        # RFC 6125: the certificate is that of the domain which was asked for, whatever the
        # records say who serves it.
        domain = _LABELS_OF_A_SERVICE.sub("", host, count=1)
        tls = _speaks_tls(kind, preset, None, wants_tls=wants_tls)
        return replace(
            _server(kind, name, host, 0, path, tls=tls), found_by=found_by, server_name=domain
        )
    tls = _speaks_tls(kind, preset, port, wants_tls=wants_tls)
    port = port or (443 if kind == "https" else preset.port)
    return replace(
        _server(kind, name, host, port, path, tls=tls), found_by=found_by, server_name=host
    )


def _listed_in(url: str, name: str) -> Upstream:
    path = url.removeprefix("file:")
    if path.startswith("//"):
        path = path[2:]
    if not path.isprintable() or not path.strip():
        raise _refused("must be file: and the path of a file that lists servers")
    return Upstream(
        name=name,
        scheme="",
        host="",
        port=0,
        path=path,
        management=GENERIC.management,
        found_by="file",
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
