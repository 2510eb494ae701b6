"""What cannot be configured together: two values that are fine and whose sum would be a lie."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from llmproxy.auth.configured import entry_with
from llmproxy.auth.keys import MAKE_ONE
from llmproxy.auth.secrets import sha256_of
from llmproxy.records import Budget, Limit
from llmproxy.settings.engines import KeySource


def why_no_auth(auth: str, given: Mapping[str, Any]) -> list[str]:
    """Return why callers could not be asked for what `auth` says; empty when they can."""
    if auth == "off":
        if given.get("keys"):
            return ["is off, and LLMPROXY_KEYS names keys that nobody would be asked for"]
        return []
    wrong = []
    methods = auth.split("+")
    if "auth" not in given.get("middleware", ("auth",)):
        wrong.append("needs the layer auth in LLMPROXY_MIDDLEWARE, or nobody is asked for a key")
    if "jwt" in methods:
        if given.get("jwt_issuer", "-") is None:
            wrong.append("with jwt needs LLMPROXY_JWT_ISSUER")
        if not given.get("jwt_audience", ("-",)):
            wrong.append("with jwt needs LLMPROXY_JWT_AUDIENCE: any token of the issuer would do")
        if importlib.util.find_spec("jwt") is None:
            wrong.append("with jwt needs an extra: pip install 'llmproxy[jwt]'")
    if "hmac" in methods and _several(given) and _alone(given):
        wrong.append(
            "with hmac and several workers needs LLMPROXY_STORE=redis://... or sqlite:///...:"
            " each worker would accept a signature once"
        )
    return wrong


def why_no_caller(keys: KeySource, given: Mapping[str, Any]) -> list[str]:
    """Return why these could not be the keys of callers; empty when they can."""
    admin_key = given.get("admin_key")
    if admin_key is None:
        return []
    number = entry_with(sha256_of(admin_key.get_secret_value().encode()), keys.entries)
    if not number:
        return []
    return [
        f"entry {number} has the key that LLMPROXY_ADMIN_KEY has: that caller would be the admin;"
        f" {MAKE_ONE}"
    ]


def why_not_kept(asked: Sequence[Limit | Budget], given: Mapping[str, Any]) -> list[str]:
    """Return why the limits and budgets of one variable could not be kept; empty when they can."""
    wrong = []
    if asked and "rate_limit" not in given.get("middleware", ("rate_limit",)):
        wrong.append(
            "limits and budgets need the layer rate_limit in LLMPROXY_MIDDLEWARE, or nobody is"
            " held to them"
        )
    if asked and _several(given) and _alone(given):
        wrong.append(
            "limits and budgets with several workers need LLMPROXY_STORE=redis://... or"
            " sqlite:///...: in memory each worker would allow all of it"
        )
    prices = given.get("prices")
    if any(each.unit == "usd" for each in asked) and prices is not None and not prices:
        wrong.append("a budget in usd needs LLMPROXY_PRICES: without, everything costs nothing")
    return wrong


def _several(given: Mapping[str, Any]) -> bool:
    workers: int = given.get("workers", 1)
    return workers > 1


def _alone(given: Mapping[str, Any]) -> bool:
    store = given.get("store")
    return store is not None and not store.shared
