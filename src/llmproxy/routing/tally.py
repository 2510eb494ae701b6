"""The tokens of a text that several servers have generated, one after the other.

Rule 1: what a server has counted holds. One that goes on with a text counts the beginning as a
        part of its prompt: its two numbers together are true, only their border is not.
Rule 2: where nobody has counted the beginning, it has as many tokens as the rest would have in
        its place, and at least one an event. That is a guess, and known as one.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Tally:
    """What is known of the tokens of a text."""

    tokens: int = 0  # by the best count there is
    prompt: int | None = None  # of the question; None: nobody has said
    counted: bool = False  # its server has counted all of it
    pieces: int = 0  # events with text in them
    length: int = 0  # characters

    def note(self, event: dict[str, Any], length: int) -> None:
        """Take notice of an event with so much text; some engines count in each of them."""
        if length:
            self.length += length
            self.pieces += 1
            self.tokens += 1
            self.counted = False
        usage = event.get("usage")
        prompt, completion = _numbers(usage) if isinstance(usage, dict) else (0, 0)
        # A token may have no text, but no text comes without a token.
        if prompt and completion >= self.pieces:
            self.prompt, self.tokens, self.counted = prompt, completion, True

    def add_up(self, usage: dict[str, Any], rest: "Tally") -> None:
        """Have the usage of the server that has gone on with this text count all of it."""
        prompt, completion = _numbers(usage)
        if not prompt:
            return
        already = self.tokens
        if self.prompt is not None:
            if not self.counted:
                already = max(already, prompt - self.prompt)
            prompt = self.prompt
        else:
            # One more than pieces is the end of the text. Yet more: several in one piece.
            if rest.length and completion > rest.pieces + 1:
                guess = round(completion * self.length / rest.length)
                already = max(already, min(guess, prompt - 1))
            prompt = max(0, prompt - already)
        completion += already
        usage["prompt_tokens"], usage["completion_tokens"] = prompt, completion
        usage["total_tokens"] = prompt + completion


def _numbers(usage: dict[str, Any]) -> tuple[int, int]:
    """Return the tokens of a prompt and of an answer; 0 of both when they are not told."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (prompt, completion) if type(prompt) is int and type(completion) is int else (0, 0)
