"""The key that opens the doors which callers have no business behind."""

import hmac

from llmproxy.headers import find
from llmproxy.types import Header


class AdminKey:
    """Compares in constant time; without a configured key nothing opens."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key else None

    @property
    def configured(self) -> bool:
        """Whether there is one."""
        return self._key is not None

    def opens(self, headers: list[Header]) -> bool:
        """Tell whether a request carries the key."""
        if self._key is None:
            return False
        authorization = find(headers, b"authorization") or b""
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            given = find(headers, b"x-api-key") or b""
        return hmac.compare_digest(given.strip(), self._key)
