"""The grammar of upstreams: `[name=]url[;option=value...]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmproxy.records import Upstream
from llmproxy.settings.faults import MASK, Refused, cut, safe_url, shown
from llmproxy.settings.lists import Entry, entries
from llmproxy.settings.upstream_options import KEY_HEADERS, TLS_OPTIONS, read_options
from llmproxy.settings.urls import is_url, server_at

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Given:
    """A value together with the environment that `env:NAME` in it refers to."""

    value: object = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)


def read_upstreams(given: object, environ: Mapping[str, str]) -> tuple[Upstream, ...]:
    """Read the list of model servers; raise with everything that is wrong with any of them."""
    upstreams: list[Upstream] = []
    refused: list[Refused] = []
    if isinstance(given, list | tuple) and all(isinstance(item, Upstream) for item in given):
        upstreams = list(given)  # made in Python
    else:
        found, refused = entries(given)
        # A secret with a comma in it falls apart into entries that do not look like secrets.
        delicate = shown(given) == MASK
        for position, entry in enumerate(found, 1):
            try:
                upstreams.append(_upstream(entry, position, environ, delicate=delicate))
            except Refused as exc:
                refused.append(exc)
    names = [upstream.name for upstream in upstreams]
    for name in sorted({name for name in names if names.count(name) > 1}):
        refused.append(Refused((cut(name), "two upstreams have this name")))
    if refused:
        raise Refused(*(complaint for one in refused for complaint in one.complaints))
    return tuple(upstreams)


def _upstream(
    entry: Entry, position: int, environ: Mapping[str, str], *, delicate: bool
) -> Upstream:
    name = f"upstream-{position}" if entry.name is None else entry.name
    wrong: list[str] = []
    if not _NAME.fullmatch(name):
        wrong.append("its name must have 1 to 64 letters, digits, dots, - and _")
    server: Upstream | None = None
    wants_tls = not TLS_OPTIONS.isdisjoint(entry.options)
    try:
        server = server_at(entry.value, name, wants_tls=wants_tls)
    except Refused as exc:
        wrong += [cure for _, cure in exc.complaints]
    options, wrong_options = read_options(entry.options, environ)
    wrong += wrong_options
    if server is not None:
        if wants_tls and server.scheme != "https":
            wrong.append("`ca` and `cert` need an https URL")
        if options.proxy is not None and server.scheme == "unix":
            wrong.append("there is no way through a `proxy` to a unix socket")
        if not wrong:
            return replace(
                server,
                credentials=options.credentials(server),
                models=options.models,
                weight=options.weight,
                max_inflight=options.max_inflight,
                tags=frozenset(options.tags),
                ca=options.ca,
                cert=options.cert,
                proxy=options.proxy,
            )
    if is_url(entry.value):
        value = cut(safe_url(entry.value))
    else:
        value = MASK if delicate else shown(entry.value)
    raise Refused(*((value, f"upstream {position}: {cure}") for cure in wrong))


def described(upstream: Upstream) -> str:
    """Return an upstream in its own grammar, without what is secret."""
    options = {
        "models": "|".join(upstream.models),
        "weight": str(upstream.weight) if upstream.weight != 1 else "",
        "key": MASK if has_key(upstream) else "",
        "max_inflight": str(upstream.max_inflight or ""),
        "tags": "|".join(sorted(upstream.tags)),
        "ca": upstream.ca,
        "cert": upstream.cert,
        "proxy": safe_url(upstream.proxy) if upstream.proxy else "",
    }
    written = "".join(f";{option}={value}" for option, value in options.items() if value)
    return f"{upstream.name}={url_of(upstream)}{written}"


def url_of(upstream: Upstream) -> str:
    """Return where an upstream is: what stands in the place of /v1."""
    if upstream.scheme == "unix":
        return f"unix:{upstream.path}"
    return f"{upstream.scheme}://{upstream.authority}{upstream.api}"


def has_key(upstream: Upstream) -> bool:
    """Tell whether an upstream is sent a key of its own."""
    return any(name in KEY_HEADERS for name, _ in upstream.credentials)
