"""The grammar of upstreams: `[name=]url[;option=value...]`, in a variable or in a watched file."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmproxy.records import Upstream
from llmproxy.routing.discovery.server_file import LARGEST
from llmproxy.routing.discovery.source import mark
from llmproxy.settings.faults import MASK, Refused, cut, safe_url, shown
from llmproxy.settings.lists import Entry, entries
from llmproxy.settings.upstream_options import KEY_HEADERS, TLS_OPTIONS, WITH_PRIORITY, read_options
from llmproxy.settings.urls import is_url, server_at
from llmproxy.watched_file import content_of

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
            name = f"upstream-{position}" if entry.name is None else entry.name
            try:
                upstream = _upstream(entry, position, name, environ, delicate=delicate)
                if upstream.found_by:
                    _check_source(upstream, position, environ)
                upstreams.append(upstream)
            except Refused as exc:
                refused.append(exc)
    return _without_faults(upstreams, refused)


def read_server_file(
    template: Upstream, content: bytes, environ: Mapping[str, str]
) -> tuple[Upstream, ...]:
    """Read a file of servers: JSON, or entries in lines and between commas, `#` before comments.

    One without a name is called by a mark that depends on its URL: no line that comes or goes
    renames another.
    """
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Refused(("", "is not UTF-8")) from None
    if not text:
        # What writes it anew empties it first, and we may look in between.
        raise Refused(("", "is empty; a file that lists no server needs a comment in it"))
    if not text.startswith(("[", "{")):
        lines = (line.strip() for line in text.splitlines())
        text = ",".join(line for line in lines if not line.startswith("#"))
    found, refused = entries(text)
    upstreams: list[Upstream] = []
    for position, entry in enumerate(found, 1):
        name = f"{template.name}-{mark(entry.value)}" if entry.name is None else entry.name
        try:
            upstream = _upstream(entry, position, name, environ, delicate=True)
            if upstream.found_by:
                raise Refused(("", f"upstream {position}: a file lists servers, not where to look"))
            upstreams.append(replace(upstream, found=True))
        except Refused as exc:
            refused.append(exc)
    return _without_faults(upstreams, refused)


def _without_faults(upstreams: list[Upstream], refused: list[Refused]) -> tuple[Upstream, ...]:
    names = [upstream.name for upstream in upstreams]
    twice = sorted({name for name in names if names.count(name) > 1})
    complaints = [complaint for one in refused for complaint in one.complaints]
    complaints += [(cut(name), "two upstreams have this name") for name in twice]
    if complaints:
        raise Refused(*complaints)
    return tuple(upstreams)


def _check_source(template: Upstream, position: int, environ: Mapping[str, str]) -> None:
    """See that a source can be asked: that can be told now, and need not be found out later."""
    if template.found_by == "srv" and importlib.util.find_spec("dns") is None:
        cure = f"upstream {position}: srv+ needs an extra: pip install 'llmproxy[srv]'"
        raise Refused((url_of(template), cure))
    if template.found_by == "file":
        try:
            content = content_of(template.path, LARGEST)
            read_server_file(template, content, environ)
        except Refused as exc:
            raise Refused(*((url_of(template), cure) for _, cure in exc.complaints)) from None
        except ValueError as exc:
            raise Refused((url_of(template), f"upstream {position}: {exc}")) from None


def _upstream(
    entry: Entry, position: int, name: str, environ: Mapping[str, str], *, delicate: bool
) -> Upstream:
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
        if wants_tls and server.scheme != "https" and server.found_by != "file":
            wrong.append("`ca` and `cert` need an https URL")
        if options.priority and server.preset not in WITH_PRIORITY:
            wrong.append(f"`priority` means nothing to {server.preset}://")
        if options.proxy is not None and server.scheme == "unix":
            wrong.append("there is no way through a `proxy` to a unix socket")
        if options.proxy is not None and server.found_by:
            wrong.append("there is no way through a `proxy` to servers that are looked for")
        if server.found_by == "file" and entry.options:
            wrong.append("options stand in the file, behind the server that they are for")
        if not wrong:
            return replace(
                server,
                credentials=options.credentials(server),
                models=options.models,
                weight=options.weight,
                max_inflight=options.max_inflight,
                priority=options.priority,
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
        "priority": "on" if upstream.priority else "",
        "tags": "|".join(sorted(upstream.tags)),
        "ca": upstream.ca,
        "cert": upstream.cert,
        "proxy": safe_url(upstream.proxy) if upstream.proxy else "",
    }
    written = "".join(f";{option}={value}" for option, value in options.items() if value)
    return f"{upstream.name}={url_of(upstream)}{written}"


def url_of(upstream: Upstream) -> str:
    """Return where an upstream is, or where to look: with what stands in the place of /v1."""
    if upstream.scheme == "unix":
        return f"unix:{upstream.path}"
    if upstream.found_by == "file":
        return f"file:{upstream.path}"
    if not upstream.found_by:
        return f"{upstream.scheme}://{upstream.address}{upstream.api}"
    where = {
        "dns": f"{upstream.address}{upstream.api}",
        "srv": f"{upstream.host}{upstream.api}",
        "consul": f"{upstream.address}/{upstream.path}",
    }[upstream.found_by]
    return f"{upstream.found_by}+{upstream.scheme}://{where}"


def has_key(upstream: Upstream) -> bool:
    """Tell whether an upstream is sent a key of its own."""
    return any(name in KEY_HEADERS for name, _ in upstream.credentials)
