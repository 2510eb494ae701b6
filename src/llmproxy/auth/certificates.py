"""Who a client certificate belongs to, as nginx has verified it.

Rule 1: only a trusted proxy is believed; from anybody else these headers are just text.
Rule 2: a fingerprint (SHA-1 as nginx has it, or SHA-256), or the one common name of the subject.
Rule 3: a header that came twice, or a subject with two common names, names nobody.
"""

import re
from collections.abc import Iterable, Mapping

from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Principal

_FINGERPRINT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_VERIFY = b"x-llmproxy-client-cert-verify"
_SUBJECT = b"x-llmproxy-client-cert-subject"
_DIGEST = b"x-llmproxy-client-cert-fingerprint"
_ESCAPED = re.compile(r"\\([0-9A-Fa-f]{2})|\\(.)", re.DOTALL)
_RDN = re.compile(r"((?:[^\\,+]|\\.)*)[,+]?", re.DOTALL)


def certificate(given: object) -> str:
    """Read the option `cert`: a fingerprint, or the common name of a subject."""
    if not isinstance(given, str) or not 0 < len(given.strip()) <= 256:
        raise ValueError("`cert` must be a SHA-1 or SHA-256 fingerprint, or a common name")
    value = given.strip()
    plain = value.replace(":", "").lower()
    if _FINGERPRINT.fullmatch(plain):
        return plain
    return value.removeprefix("CN=")


class Certificates:
    """The callers who are known by a certificate."""

    def __init__(self, trusted_proxies: TrustedProxies) -> None:
        self._trusted = trusted_proxies
        self._principals: Mapping[str, Principal] = {}

    def replace(self, known: Iterable[tuple[str, Principal]]) -> None:
        """Take these callers in the place of those before."""
        self._principals = dict(known)

    def find(
        self, peer: str | None, fields: Mapping[bytes, bytes], *, repeated: bool
    ) -> Principal | None:
        """Return whose certificate a trusted proxy has verified for this request."""
        if not self._principals or fields.get(_VERIFY) != b"SUCCESS":
            return None
        if repeated or not self._trusted.include(peer):
            return None
        digest = fields.get(_DIGEST, b"").decode("latin-1").replace(":", "").lower()
        if _FINGERPRINT.fullmatch(digest) and (found := self._principals.get(digest)) is not None:
            return found
        name = common_name(fields.get(_SUBJECT, b"").decode("utf-8", "replace"))
        # A name that reads like a fingerprint is none: anybody can be called anything.
        if name is None or _FINGERPRINT.fullmatch(name.lower()):
            return None
        return self._principals.get(name)


def common_name(subject: str) -> str | None:
    """Return the one common name of a subject as RFC 2253 writes it; None if there is not one."""
    names = []
    at = 0
    while at < len(subject):
        match = _RDN.match(subject, at)
        if match is None or match.end() == at:
            return None
        attribute, equals, value = match[1].partition("=")
        if equals and attribute.strip().upper() in ("CN", "2.5.4.3"):
            names.append(_unescaped(value))
        at = match.end()
    return names[0] if len(names) == 1 else None


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2], value)
