"""The grammar of a store's URL. Pure: what is named here need not exist yet."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

ALLOWED = (
    "memory, sqlite:///path/to/file, redis://host:6379/0, rediss://host:6379/0, "
    "redis+unix:///path/to/socket, redis+sentinel://host:26379,host:26379/name or "
    "redis+cluster://host:6379,host:6379"
)
PORT, SENTINEL_PORT = 6379, 26379

_URL = re.compile(r"([a-z+]+)://(?:([^/?#]*)@)?([^/?#@]*)([^?#]*)(?:\?([^#]*))?")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_TLS = frozenset({"ca", "cert"})
_OPTIONS = {
    "sqlite": frozenset[str](),
    "redis": frozenset({"db"}),
    "rediss": frozenset({"db"}) | _TLS,
    "redis+unix": frozenset({"db"}),
    "redis+sentinel": frozenset({"db", "tls", "sentinel_user", "sentinel_password"}) | _TLS,
    "redis+cluster": frozenset({"tls"}) | _TLS,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is, and how to get in."""

    kind: str  # memory, or the scheme of the URL
    path: str = ""  # of the file or the socket
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""  # the name by which Sentinel knows it
    db: int = 0
    tls: bool = False
    ca: str | None = None  # file; None = those of the system
    cert: str | None = None  # file with certificate and key
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


def store_url(given: object) -> str:
    """Return the URL of a store, or raise `ValueError` with what is allowed."""
    if not isinstance(given, str):
        raise ValueError(f"must be text: {ALLOWED}")
    place(given)
    return given.strip()


def place(url: str) -> Place:
    """Read a URL. What is raised repeats nothing of it: it may carry a password."""
    url = url.strip()
    if url == "memory":
        return Place("memory")
    match = _URL.fullmatch(url)
    if match is None or match[1] not in _OPTIONS:
        raise ValueError(f"must be one of {ALLOWED}")
    kind, login, hosts, path, query = match.groups()
    options = _options(kind, query or "")
    user, password = _login(login)
    if kind in ("sqlite", "redis+unix"):
        if hosts or not path.strip("/"):
            raise ValueError(f"{kind}:// needs three slashes and an absolute path")
        if kind == "sqlite" and login is not None:
            raise ValueError("a SQLite file has no user and no password")
    elif not hosts:
        raise ValueError(f"{kind}:// must name a host")
    return Place(
        kind,
        path=unquote(path) if kind in ("sqlite", "redis+unix") else "",
        hosts=_hosts(hosts, kind),
        service=_service(path) if kind == "redis+sentinel" else "",
        db=_db(kind, path, options),
        tls=kind == "rediss" or _flag(options.get("tls", "false")),
        ca=_file(options, "ca"),
        cert=_file(options, "cert"),
        user=user,
        password=password,
        sentinel_user=options.get("sentinel_user"),
        sentinel_password=options.get("sentinel_password"),
    )


def _options(kind: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    known = _OPTIONS[kind]
    if len(options) != len(pairs) or options.keys() - known:
        names = ", ".join(sorted(known)) if known else "no options"
        raise ValueError(f"after ? a {kind}:// URL may have, once each: {names}")
    return options


def _login(login: str | None) -> tuple[str | None, str | None]:
    if not login:
        return None, None
    user, colon, password = login.partition(":")
    if not colon:
        raise ValueError("before @ must be user:password, or :password")
    return unquote(user) or None, unquote(password) or None


def _hosts(text: str, kind: str) -> tuple[tuple[str, int], ...]:
    if not text:
        return ()
    found = []
    for part in text.split(","):
        match = _HOST.fullmatch(part)
        port = SENTINEL_PORT if kind == "redis+sentinel" else PORT
        if match is not None and match[3] is not None:
            port = int(match[3])
        if match is None or not 1 <= port <= 65535:
            raise ValueError("a host must be a name or an address and a port, such as redis:6379")
        found.append((match[1] or match[2], port))
    if len(found) > 1 and kind in ("redis", "rediss"):
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    return tuple(found)


def _service(path: str) -> str:
    name = unquote(path.strip("/").partition("/")[0])
    if not name:
        raise ValueError("redis+sentinel:// must end in the name of the service: /mymaster")
    return name


def _db(kind: str, path: str, options: dict[str, str]) -> int:
    rest = path.strip("/")
    if kind == "redis+sentinel":
        rest = rest.partition("/")[2]
    elif kind in ("sqlite", "redis+unix"):
        rest = ""
    elif kind == "redis+cluster" and rest:
        raise ValueError("a cluster has one database, which has no number")
    if rest and "db" in options:
        raise ValueError("the number of the database is given twice")
    text = rest or options.get("db", "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        raise ValueError("the database must be a number, such as 0")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("tls must be true or false")
    return text == "true"


def _file(options: dict[str, str], name: str) -> str | None:
    path = options.get(name)
    if path is not None and not Path(path).is_absolute():
        raise ValueError(f"{name} must be an absolute path")
    return path
