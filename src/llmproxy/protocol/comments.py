"""Comments in an event stream: lines that begin with a colon, which no client shows anybody."""

import re

KEEP_ALIVE = b": keep-alive\n\n"

# Possessive: what matches in two ways must not be tried in all of them.
_ONLY = re.compile(rb"(?>:[^\r\n]*(?>\r\n|\n|\r)|\r\n|\n|\r)++\Z")


def is_only_comment(chunk: bytes) -> bool:
    """Tell whether a chunk says nothing yet: whole lines, and each of them a comment or empty."""
    return chunk[:1] == b":" and _ONLY.match(chunk) is not None
