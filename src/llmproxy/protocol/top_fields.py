"""The fields at the top of a JSON object. What is in them is skipped and not built.

Rule 1: of two fields with the same name both are seen, however they are spelled.
Rule 2: the values are the bytes that came: numbers, spaces and escapes are the caller's.
"""

import msgspec

from llmproxy.errors import InvalidRequest

MOST = 4096  # fields; each is a call of ours, 6 ms for as many


class _Key:
    """A key as it is read, and equal to no other: so none can hide behind one like it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def fields_of(body: bytes) -> list[tuple[str, msgspec.Raw]]:
    """Return all fields in their order; raise msgspec's errors for what is no JSON object.

    Strings that are skipped are not checked for being UTF-8.
    """
    room = iter(range(MOST))

    def key(_: type, name: str) -> _Key:
        if next(room, None) is None:
            raise InvalidRequest(f"The request body has more than {MOST} fields.")
        return _Key(name)

    found = msgspec.json.decode(body, type=dict[_Key, msgspec.Raw], dec_hook=key)
    return [(key.name, raw) for key, raw in found.items()]


def with_field(body: bytes, name: str, value: bytes) -> bytes:
    """Return the object written anew with this field, in its old place or as the last."""
    found = {**dict(fields_of(body)), name: msgspec.Raw(value)}
    return msgspec.json.encode(found)
