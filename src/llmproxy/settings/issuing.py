"""What keys that are issued later need of the configuration, so that they mean what they say."""

from collections.abc import Mapping
from typing import Any

from llmproxy.settings.contradictions import why_not_kept
from llmproxy.settings.model import Settings


def why_not_issued(settings: Settings, fields: Mapping[str, Any]) -> list[str]:
    """Return why a key with these fields could not be issued here; empty when it can.

    `fields` are those of a `Principal`.
    """
    wrong = []
    if settings.workers > 1 and not settings.store.shared:
        wrong.append(
            "with several workers LLMPROXY_STORE must be redis://... or sqlite:///...: only the"
            " worker that made the key would know it"
        )
    chain = {"middleware": settings.middleware, "prices": settings.prices}
    asked = (*fields.get("limits", ()), *fields.get("budgets", ()))
    return wrong + why_not_kept(asked, chain)


def why_not_asked(settings: Settings) -> str | None:
    """Return why nobody is asked for a key that is issued here, and what to do about it."""
    auth = settings.auth
    if "keys" in auth.split("+"):
        return None
    asking = "keys" if auth == "off" else f"keys+{auth}"
    return f"nobody is asked for such a key yet: LLMPROXY_AUTH is {auth} here; set it to {asking}"
