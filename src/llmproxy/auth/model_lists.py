"""A list of models, without those that the caller may not use.

OpenAI's list has its models under `data` by `id`, Ollama's under `models` by `model`. What is
neither cannot be filtered, and then there is nothing to show.
"""

from typing import Any

from llmproxy import codec
from llmproxy.auth.permissions import allows
from llmproxy.records import Principal

_KEYS = (("data", ("id",)), ("models", ("model", "name")))


def filtered(body: bytes, principal: Principal) -> bytes:
    """Return the list as this caller may see it."""
    try:
        told = codec.loads(body)
    except codec.NotJson:
        told = None
    if isinstance(told, dict):
        known = [(key, names) for key, names in _KEYS if isinstance(told.get(key), list)]
        if known:
            for key, names in known:
                told[key] = [each for each in told[key] if _may_see(each, names, principal)]
            return codec.dumps(told)
    return b'{"object":"list","data":[]}'


def _may_see(model: Any, names: tuple[str, ...], principal: Principal) -> bool:
    if not isinstance(model, dict):
        return False
    name = next((model[key] for key in names if isinstance(model.get(key), str)), None)
    return name is not None and allows(principal, name)
