"""Configured keys: `name:key[;option=value...]`, separated by commas.

The key is a literal, `env:NAME`, or `sha256:HEX`, so that a file needs no secret in it. JSON
and native lists are accepted; there an entry is text, or a table with `name`, `key` and the
options. Without a key, `cert=` alone makes an entry: somebody who is known by a certificate.

Rule 1: a message says which entry by its number. Not by its name: whoever mixes up the two
        sides of the colon has put the key there.
Rule 2: of a key only digests are kept.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmproxy import codec
from llmproxy.auth.certificates import certificate
from llmproxy.auth.fields import Fields, text
from llmproxy.auth.samples import is_sample
from llmproxy.auth.secrets import sha256_of, signing_secret
from llmproxy.records import Principal

SHORTEST = 8  # characters

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SENDABLE = re.compile(r"[\x21-\x7e]{1,512}")
_YES = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_OWN = ("cert", "unsigned", "note")  # options that are not about what the caller may do
MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One configured caller."""

    principal: Principal
    sha256: bytes | None = field(default=None, repr=False)
    signing: bytes | None = field(default=None, repr=False)  # None where only a digest is known
    certificate: str | None = None
    unsigned: bool = False  # may sign uploads without their content
    note: str = ""


def keys(given: object, *, fields: Fields, environ: Mapping[str, str]) -> tuple[KeyEntry, ...]:
    """Read a list of keys; raise `ValueError` with all that is wrong with it."""
    return read_entries(_items(given), fields=fields, environ=environ)


def read_entries(
    items: Iterable[object], *, fields: Fields, environ: Mapping[str, str]
) -> tuple[KeyEntry, ...]:
    """Read entries that have been taken apart already."""
    found: list[KeyEntry] = []
    wrong: list[str] = []
    for number, item in enumerate(items, 1):
        try:
            found.append(_entry(item, fields, environ))
        except ValueError as exc:
            wrong.append(f"entry {number}: {exc}")
    wrong += _repeated(found)
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(found)


def usable_secret(secret: str) -> str:
    """Return a key that may be used; the message of the error does not show it."""
    if not secret.strip():
        raise ValueError(f"the key is empty; {MAKE_ONE}")
    if not _SENDABLE.fullmatch(secret):
        raise ValueError(
            f"the key must be at most 512 characters of printable ASCII without spaces; {MAKE_ONE}"
        )
    if is_sample(secret):
        raise ValueError(f"the key is a sample value that everybody knows; {MAKE_ONE}")
    if len(secret) < SHORTEST:
        raise ValueError(f"the key has less than {SHORTEST} characters; {MAKE_ONE}")
    return secret


def usable_name(given: object) -> str:
    """Return a name that may be given to a key."""
    if not isinstance(given, str) or not NAME.fullmatch(given.strip()):
        raise ValueError("the name must be 1 to 64 letters, digits and . _ @ -")
    return given.strip()


def _items(given: object) -> Iterable[object]:
    if isinstance(given, str):
        stripped = given.strip()
        if not stripped.startswith(("[", "{")):
            return [part for part in stripped.split(",") if part.strip()]
        try:
            given = codec.loads(stripped)
        except codec.NotJson:
            # Not chained: the error holds the document.
            raise ValueError("begins like JSON but is not valid JSON") from None
    if isinstance(given, Mapping):
        return [_named(name, item) for name, item in given.items()]
    if isinstance(given, list | tuple):
        return given
    raise ValueError("must be a list: name:key[;option=value...], separated by commas, or JSON")


def _named(name: object, item: object) -> object:
    return {"name": name, **(item if isinstance(item, Mapping) else {"key": item})}


def _entry(item: object, fields: Fields, environ: Mapping[str, str]) -> KeyEntry:
    if isinstance(item, KeyEntry):
        return item
    options = _options_of(item)
    name = usable_name(options.pop("name", None))
    secret = options.pop("key", "")
    own = {option: options.pop(option) for option in _OWN if option in options}
    cert = certificate(own["cert"]) if "cert" in own else None
    if not isinstance(secret, str):
        raise ValueError("the key must be text")
    known = Principal(id=f"key:{name}", name=name, **fields.read(options))
    sha256, signing = None, None
    if secret.strip() or cert is None:
        sha256, signing = _secret(secret.strip(), environ)
    unsigned = own.get("unsigned", False)
    if isinstance(unsigned, str):
        unsigned = _YES.get(unsigned.lower())
    if not isinstance(unsigned, bool):
        raise ValueError("`unsigned` must be yes or no")
    note = text(own["note"]) if "note" in own else ""
    return KeyEntry(known, sha256, signing, cert, unsigned, note)


def _options_of(item: object) -> dict[str, object]:
    if isinstance(item, Mapping):
        return {str(option): content for option, content in item.items()}
    if not isinstance(item, str):
        raise ValueError("must be text or a table")
    head, *rest = item.split(";")
    name, colon, secret = head.partition(":")
    if not colon:
        raise ValueError("must be written name:key")
    options: dict[str, object] = {"name": name, "key": secret}
    for part in rest:
        if not part.strip():
            continue
        option, equals, content = part.partition("=")
        if not equals:
            raise ValueError("an option after ; must be written option=value")
        if option.strip() in options:
            raise ValueError("an option is given twice")
        options[option.strip()] = content.strip()
    return options


def _secret(given: str, environ: Mapping[str, str]) -> tuple[bytes, bytes | None]:
    if given.startswith("sha256:"):
        digest = given.removeprefix("sha256:")
        if not _SHA256.fullmatch(digest):
            raise ValueError("what follows sha256: must be 64 hex digits")
        return bytes.fromhex(digest), None
    if given.startswith("env:"):
        variable = given.removeprefix("env:")
        if not _VARIABLE.fullmatch(variable):
            raise ValueError("the key must be env: and the name of a variable")
        if variable not in environ:
            raise ValueError(f"the environment variable {variable} is not set")
        given = environ[variable].strip()
    secret = usable_secret(given).encode()
    return sha256_of(secret), signing_secret(secret)


def _repeated(entries: list[KeyEntry]) -> list[str]:
    wrong: list[str] = []
    for what, values in (
        ("name", [entry.principal.name for entry in entries]),
        ("key", [entry.sha256 for entry in entries if entry.sha256 is not None]),
        ("certificate", [entry.certificate for entry in entries if entry.certificate is not None]),
    ):
        if len(set(values)) != len(values):
            wrong.append(f"two entries have the same {what}")
    return wrong
