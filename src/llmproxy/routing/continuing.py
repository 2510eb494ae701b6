"""What another server is asked, so that it goes on with a stream that broke.

It is asked to continue the very text that the caller has (`Way.PREFILL`), where it is known to do
that; elsewhere it is asked the first question again and must begin with exactly that text, which
is then skipped (`Way.AGAIN`).
"""

from enum import Enum
from typing import Any

from llmproxy import codec
from llmproxy.routing.delivered import CannotContinue, Delivered

# Engines that continue the last message of an assistant, and what they want to be told.
_PREFILL: dict[str, dict[str, object]] = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "sglang": {"continue_final_message": True},
    "llamacpp": {},
    "ollama": {},
    "lmstudio": {},
}


class Way(Enum):
    """How another server is asked."""

    PREFILL = "prefill"
    AGAIN = "again"


class NotThisWay(CannotContinue):
    """It cannot be asked for in this way; perhaps it can in another."""


def ways(preset: str, *, chat: bool) -> tuple[Way, ...]:
    """Return how a server of this kind may be asked, the better way first."""
    if not chat or preset in _PREFILL:
        return (Way.PREFILL, Way.AGAIN)
    return (Way.AGAIN,)


def continuing_body(
    body: bytes, delivered: Delivered, way: Way, preset: str, model: str | None = None
) -> bytes:
    """Return the request that another server gets."""
    try:
        asked = codec.loads(body)
    except codec.NotJson:
        raise CannotContinue("request") from None
    if not isinstance(asked, dict) or not may_be_continued(asked):
        raise CannotContinue("request")
    if model is not None:
        asked["model"] = model
    if way is Way.PREFILL and delivered.text:
        _continue(asked, delivered, preset)
    try:
        return codec.dumps(asked)
    except TypeError:  # nested deeper than it can be written
        raise CannotContinue("request") from None


def may_be_continued(asked: dict[str, Any]) -> bool:
    """Tell whether what was asked for can be continued at all."""
    choices = asked.get("n") or asked.get("best_of") or 1
    if choices != 1 or asked.get("logprobs") or asked.get("top_logprobs") or asked.get("echo"):
        return False
    return "messages" in asked or isinstance(asked.get("prompt"), str)


def _is_held_to_a_grammar(asked: dict[str, Any]) -> bool:
    """Tell whether an engine lets only certain texts through: of a rest it would ask for all."""
    form = asked.get("response_format")
    return (
        any(asked.get(name) is not None for name in _GRAMMARS)
        or (isinstance(form, dict) and form.get("type", "text") != "text")
        or asked.get("tool_choice") not in (None, "auto", "none")
    )


_GRAMMARS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("grammar", "json_schema", "regex", "ebnf", "structural_tag"),
)


def _continue(asked: dict[str, Any], delivered: Delivered, preset: str) -> None:
    if _is_held_to_a_grammar(asked):
        raise NotThisWay("grammar")
    if delivered.chat:
        messages = asked["messages"]
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
            raise CannotContinue("request")
        if messages[-1].get("role") == "assistant":
            # The caller has begun the message itself: what it began belongs to it.
            begun = messages[-1].get("content")
            if not isinstance(begun, str):
                raise CannotContinue("request")
            last = {**messages[-1], "content": begun + delivered.text}
            asked["messages"] = [*messages[:-1], last]
        else:
            asked["messages"] = [*messages, {"role": "assistant", "content": delivered.text}]
        asked.update(_PREFILL.get(preset, {}))
    else:
        asked["prompt"] = asked["prompt"] + delivered.text
    tokens = delivered.tally.tokens
    for name in ("max_tokens", "max_completion_tokens"):
        most = asked.get(name)
        if isinstance(most, int) and not isinstance(most, bool):
            if most <= tokens:
                raise CannotContinue("length")
            asked[name] = most - tokens
    if type(least := asked.get("min_tokens")) is int:
        asked["min_tokens"] = max(0, least - tokens)
