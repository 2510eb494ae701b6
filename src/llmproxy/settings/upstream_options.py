"""The grammar of an upstream's options: what follows its URL after `;`."""

import difflib
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmproxy.protocol.presets import GENERIC, PRESETS
from llmproxy.records import Upstream
from llmproxy.settings.faults import Refused
from llmproxy.settings.lists import option_list
from llmproxy.settings.scalars import count, existing_file, is_sendable, switch, why_unreadable
from llmproxy.types import Header

TLS_OPTIONS = frozenset({"ca", "cert"})
# vLLM and SGLang can schedule by classes; behind a plain URL either of them may stand.
WITH_PRIORITY = frozenset({"vllm", "sglang", "http"})
CONSUL_TOKEN = b"x-consul-token"
KEY_HEADERS = frozenset(
    {CONSUL_TOKEN, *(preset.key_header.encode() for preset in (GENERIC, *PRESETS.values()))}
)

_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PROXY = re.compile(r"https?://([^/?#@]*@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")
_LARGEST_KEY_FILE = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class Options:
    """What was said about one upstream."""

    key: str | None = None
    models: tuple[str, ...] = ()
    weight: int = 1
    max_inflight: int = 0
    priority: bool = False
    tags: tuple[str, ...] = ()
    ca: str | None = None
    cert: str | None = None
    proxy: str | None = None

    def credentials(self, server: Upstream) -> tuple[Header, ...]:
        """Return the headers that the server wants from us with every request.

        Those of a Consul template are for Consul alone.
        """
        if server.found_by == "consul":
            return ((CONSUL_TOKEN, self.key.encode()),) if self.key is not None else ()
        preset = PRESETS.get(server.preset, GENERIC)
        headers = [(name.encode(), value.encode()) for name, value in preset.headers]
        if self.key is not None:
            name = preset.key_header.encode()
            scheme = b"Bearer " if name == b"authorization" else b""
            headers.insert(0, (name, scheme + self.key.encode()))
        return tuple(headers)


def read_options(
    given: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Options, list[str]]:
    """Read the options of one upstream; beside them stands what is wrong, without values."""
    read: dict[str, Any] = {}
    wrong: list[str] = []
    for option, content in given.items():
        reader = _READERS.get(option)
        if reader is None:
            near = difflib.get_close_matches(option, _READERS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(_READERS)}"
            # Only what looks like a name is repeated: it may be the rest of a secret.
            named = f"`{option}`" if re.fullmatch(r"[a-z_]{1,20}", option) else "of this name"
            wrong.append(f"there is no option {named}; {hint}")
            continue
        try:
            read[option] = reader(content, environ)
        except Refused as exc:
            wrong += [f"`{option}` {cure}" for _, cure in exc.complaints]
    return Options(**read), wrong


def _key(given: object, environ: Mapping[str, str]) -> str:
    if not isinstance(given, str):
        raise _refused("must be text: the key itself, env:NAME or file:PATH")
    key = given.strip()
    if key.startswith("env:"):
        name = key.removeprefix("env:")
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise _refused("must be env: and the name of a variable")
        if name not in environ:
            raise _refused(f"refers to the environment variable {name}, which is not set")
        key, place = environ[name].strip(), f"the environment variable {name}"
    elif key.startswith("file:"):
        path = key.removeprefix("file:")
        reason = why_unreadable(path)
        if reason is not None:
            raise _refused(f"refers to the file {path!r}: {reason}")
        with open(path, "rb") as file:
            key = file.read(_LARGEST_KEY_FILE).decode("utf-8", "replace").strip()
        place = f"the file {path!r}"
    else:
        place = "what is given"
    if not is_sendable(key):
        raise _refused(f"is not usable: {place} is empty, or has spaces or other than ASCII in it")
    return key


def _tags(given: object) -> tuple[str, ...]:
    tags = option_list(given)
    if not all(_TAG.fullmatch(tag) for tag in tags):
        raise _refused("must be names of letters, digits, dots, - and _, separated by |")
    return tags


def _ca(given: object) -> str:
    path = existing_file(given)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise _refused("must be a file of certificates in PEM form") from None
    return path


def _cert(given: object) -> str:
    path = existing_file(given)
    reason = why_no_certificate(path)
    if reason is not None:
        raise _refused(f"must be a file with a certificate and its key in PEM form: {reason}")
    return path


def why_no_certificate(cert: str, key: str | None = None) -> str | None:
    """Return why a certificate and its key cannot be used; None when they can."""
    try:
        # An encrypted key would stop the start with a question on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        return "no certificate, no key, or an encrypted key"
    except (OSError, ValueError):
        return "it cannot be read"
    return None


def _proxy(given: object) -> str:
    if not isinstance(given, str) or not _PROXY.fullmatch(given.strip()):
        raise _refused("must be http://[user:password@]host[:port] or the same with https")
    return given.strip()


def _refused(cure: str) -> Refused:
    return Refused(("", cure))


_READERS: dict[str, Callable[[object, Mapping[str, str]], object]] = {
    "models": lambda given, _: option_list(given),
    "weight": lambda given, _: count(1, 1_000_000)(given),
    "key": _key,
    "max_inflight": lambda given, _: count(0, 1_000_000)(given),
    "priority": lambda given, _: switch(given),
    "tags": lambda given, _: _tags(given),
    "ca": lambda given, _: _ca(given),
    "cert": lambda given, _: _cert(given),
    "proxy": lambda given, _: _proxy(given),
}
