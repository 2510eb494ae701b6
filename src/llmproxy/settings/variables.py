"""The names: which variables there are, which are meant, which belong to somebody else."""

import difflib
import re
from collections.abc import Iterable

from llmproxy.settings.faults import MASK, Fault

PREFIX = "LLMPROXY_"

IN_THIS_VERSION = (
    "UPSTREAMS",
    "HOST",
    "PORT",
    "WORKERS",
    "TLS_CERT",
    "TLS_KEY",
    "STORE",
    "STORE_DOWN",
    "KEYS",
    "AUTH",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
    "JWT_ALGORITHMS",
    "JWT_JWKS",
    "JWT_CLAIMS",
    "ADMIN_KEY",
    "LIMITS",
    "BUDGET",
    "PRICES",
    "CHARGE_CANCELLED",
    "ROUTING",
    "ALIASES",
    "FALLBACKS",
    "RULES",
    "RETRIES",
    "RESCUE",
    "FIRST_TOKEN_LIMIT",
    "MAX_INFLIGHT",
    "QUEUE_SIZE",
    "QUEUE_TIMEOUT",
    "TIMEOUT_CONNECT",
    "TIMEOUT_FIRST_BYTE",
    "TIMEOUT_ANSWER",
    "TIMEOUT_IDLE",
    "TIMEOUT_TOTAL",
    "TIMEOUT_HEAD",
    "TIMEOUT_BODY",
    "TIMEOUT_WRITE",
    "TIMEOUT_KEEPALIVE",
    "KEEPALIVE_COMMENTS",
    "MAX_BODY",
    "MAX_UPLOAD",
    "MAX_CONNECTIONS",
    "MIDDLEWARE",
    "CORS_ORIGINS",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "TRUSTED_PROXIES",
    "DRAIN_TIMEOUT",
    "CONFIG",
)

# Named by the public contract and refused by name until they are built.
LATER = (
    "CACHE",
    "CACHE_TTL",
    "CACHE_SIZE",
    "CACHE_EMBEDDER",
    "CACHE_ERROR_BOUND",
    "CACHE_JUDGE",
    "LOG_BODIES",
    "OTEL",
)

NOT_IN_THIS_VERSION = "not in this version"

_INJECTED = re.compile(r"LLMPROXY_(SERVICE|PORT)_.+")
_INJECTED_PORT = re.compile(r"(tcp|udp|sctp)://")


def field_of(variable: str) -> str:
    """Return the field, the key in a file and the argument that a variable is called."""
    return variable.removeprefix(PREFIX).lower()


def variable_of(field: str) -> str:
    """Return the variable of a field."""
    return PREFIX + field.upper()


FIELDS = frozenset(field_of(name) for name in IN_THIS_VERSION)
LATER_FIELDS = frozenset(field_of(name) for name in LATER)


def is_injected(variable: str, value: str) -> bool:
    """Tell whether Kubernetes made this variable up for a Service that is named llmproxy."""
    if variable == "LLMPROXY_PORT":
        return _INJECTED_PORT.match(value) is not None
    return _INJECTED.fullmatch(variable) is not None


def unknown(written: str, *, as_variable: bool, source: str = "") -> Fault:
    """Return the fault for a name that means nothing here.

    The value stays out of it: nobody can say whether it is a secret.
    """
    name = field_of(written) if as_variable else written
    if name in LATER_FIELDS:
        return Fault(written, MASK, f"{NOT_IN_THIS_VERSION}; unset it", source)
    if name == "config" and not as_variable:
        return Fault(written, MASK, "a file is read by Settings.load() only", source)
    near = nearest(name, FIELDS | LATER_FIELDS)
    if near is None:
        cure = "there is no such setting; docs/interface.md lists all of them"
    else:
        spelled = variable_of(near) if as_variable else near
        cure = f"there is no such setting; did you mean {spelled}?"
    return Fault(written, MASK, cure, source)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, if any is."""
    return next(iter(difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.6)), None)
