"""From the raw bytes of a path to what is known about it.

Rule 1: an understood path matches byte for byte; nothing is unescaped, folded or trimmed.
Rule 2: a path that is passed through must already be in normal form, so that no server
        behind us can read it as a different one.
"""

import re
from collections.abc import Iterable

from llmproxy.records import Ending, Endpoint, Upstream

CHAT = Endpoint("chat", Ending.CHAT, json_body=True)
OTHER = Endpoint("other")
MODELS = Endpoint("models")
CHANGES_MODELS = Endpoint("management", management=True)

UNDERSTOOD: dict[bytes, Endpoint] = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": Endpoint("completions", Ending.CHAT, json_body=True),
    b"/v1/embeddings": Endpoint("embeddings", json_body=True),
    b"/v1/responses": Endpoint("responses", Ending.RESPONSES, json_body=True),
    b"/v1/messages": Endpoint("messages", Ending.MESSAGES, json_body=True),
    b"/v1/messages/count_tokens": Endpoint("count_tokens", json_body=True),
    b"/v1/rerank": Endpoint("rerank", json_body=True),
    b"/v1/score": Endpoint("score", json_body=True),
    b"/v1/tokenize": Endpoint("tokenize", json_body=True),
    b"/v1/detokenize": Endpoint("tokenize", json_body=True),
    b"/v1/audio/speech": Endpoint("audio", json_body=True),
    b"/v1/audio/transcriptions": Endpoint("audio"),
    b"/v1/audio/translations": Endpoint("audio"),
    b"/v1/images/generations": Endpoint("images", json_body=True),
    b"/v1/images/edits": Endpoint("images"),
    b"/v1/images/variations": Endpoint("images"),
    b"/v1/models": MODELS,
}

NATIVE: dict[bytes, Endpoint] = {
    b"/api/chat": Endpoint("chat", Ending.NDJSON, json_body=True, native=True),
    b"/api/generate": Endpoint("completions", Ending.NDJSON, json_body=True, native=True),
    b"/api/embed": Endpoint("embeddings", json_body=True, native=True),
    b"/api/embeddings": Endpoint("embeddings", json_body=True, native=True),
}

_SEGMENT = re.compile(rb"(?:[A-Za-z0-9\-_~!$&'()*+,=:@.]|%[0-9A-Fa-f]{2})+")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# What needs no escape and has one: `%6Dodels` is `models` for every server behind us.
_IN_DISGUISE = re.compile(rb"%(?:2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])")
_MODEL_PREFIX = b"/v1/models/"
_LOOKING = frozenset({"GET", "HEAD"})  # what is done to models otherwise changes the server


class Paths:
    """The paths that are open with the upstreams that there are, or have been."""

    def __init__(self, upstreams: Iterable[Upstream] = ()) -> None:
        self._exact = dict(UNDERSTOOD)
        self._management: tuple[bytes, ...] = ()
        self.learn(upstreams)

    def learn(self, upstreams: Iterable[Upstream]) -> None:
        """Open the paths of these upstreams too.

        None is closed again: what a server that has gone would have answered is for routing to
        refuse, and its management paths must not become open ones.
        """
        management = set(self._management)
        for upstream in upstreams:
            for path in upstream.native:
                raw = path.encode()
                self._exact[raw] = NATIVE.get(raw, Endpoint("native", native=True))
            management.update(prefix.encode() for prefix in upstream.management)
        self._management = tuple(sorted(management))

    def find(self, raw: bytes, method: str = "GET") -> Endpoint | None:
        """Return what is known about a path, or None when nothing is served there."""
        known = self._exact.get(raw)
        if known is not None:
            return known if known is not MODELS or method in _LOOKING else CHANGES_MODELS
        if not is_normal(raw):
            return None
        native = not raw.startswith(b"/v1/")
        for prefix in self._management:
            if raw == prefix or raw.startswith(prefix + b"/"):
                return Endpoint("management", management=True, native=native)
        if native:
            return None
        if not raw.startswith(_MODEL_PREFIX):
            return OTHER
        return MODELS if method in _LOOKING else CHANGES_MODELS


def serves(upstream: Upstream, raw: bytes) -> bool:
    """Tell whether a path outside the common ones belongs to this upstream's engine."""
    if raw == b"/v1/models" or raw.startswith(_MODEL_PREFIX):
        return True  # which change models, those of any engine
    path = raw.decode("ascii", "replace")
    return path in upstream.native or any(
        path == prefix or path.startswith(prefix + "/") for prefix in upstream.management
    )


def is_normal(raw: bytes) -> bool:
    """Tell whether every server reads this path the same way."""
    if not raw.startswith(b"/"):
        return False
    # Clients send `meta-llama%2FLlama-3.3-70B` as a model's id; nowhere else may an
    # escaped slash stand.
    rest, slash_allowed = raw[1:], False
    if raw.startswith(_MODEL_PREFIX):
        rest, slash_allowed = raw[len(_MODEL_PREFIX) :], True
    return all(_is_plain(segment, slash_allowed) for segment in rest.split(b"/"))


def _is_plain(segment: bytes, slash_allowed: bool) -> bool:
    if not _SEGMENT.fullmatch(segment) or _IN_DISGUISE.search(segment):
        return False
    decoded = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), segment)
    try:
        text = decoded.decode()  # refuses overlong forms too
    except UnicodeDecodeError:
        return False
    parts = text.split("/")
    if len(parts) > 1 and not slash_allowed:
        return False
    return all(part not in ("", ".", "..") for part in parts) and not any(
        char in "\\;?#%" or char < " " or char == "\x7f" for char in text
    )
