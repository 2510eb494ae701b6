"""What a prompt is made of: images, tools. Read from the body only when somebody asks.

Rule 1: words inside a text are not what they name: what looks like it is looked at again as JSON.
Rule 2: what cannot be read has nothing of it. A model server will say what is wrong with it.
"""

import msgspec

# Most bodies are done with after this: a hundred times faster than one regex for all of it.
_NUMBERED = b"\\u00"  # letters may be written as their numbers
_IMAGE = (b'"image', b'"input_image', _NUMBERED)
_TOOLS = (b'"tools"', _NUMBERED)
_IMAGE_TYPES = frozenset({"image_url", "input_image", "image"})
_DEEPEST = 6  # messages, message, content, part; and the result of a tool has parts again

_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Body(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()  # Ollama has them beside the text
    tools: msgspec.Raw = msgspec.Raw()


class _Thing(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()


# What is not wanted is skipped and not built: a thousandth of the time for a long prompt.
_BODY = msgspec.json.Decoder(_Body)
_THING = msgspec.json.Decoder(_Thing)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)


def has_images(body: bytes) -> bool:
    """Tell whether a message has an image in it."""
    if not _has_any(body, _IMAGE):
        return False
    try:
        read = _BODY.decode(body)
        return bool(_items(read.images)) or any(
            _shows(bytes(part), _DEEPEST) for part in (read.messages, read.input)
        )
    except _ERRORS:
        return False


def has_tools(body: bytes) -> bool:
    """Tell whether the model is given tools to call."""
    if not _has_any(body, _TOOLS):
        return False
    try:
        return bool(_items(_BODY.decode(body).tools))
    except _ERRORS:
        return False


def _shows(value: bytes, deep: int) -> bool:
    if deep == 0 or not _has_any(value, _IMAGE):
        return False
    if value.startswith(b"["):
        return any(_shows(bytes(each), deep - 1) for each in _LIST.decode(value))
    if not value.startswith(b"{"):
        return False
    thing = _THING.decode(value)
    kind = bytes(thing.type)
    if kind.startswith(b'"') and _TEXT.decode(kind) in _IMAGE_TYPES:
        return True
    return bool(_items(thing.images)) or _shows(bytes(thing.content), deep - 1)


def _has_any(body: bytes, words: tuple[bytes, ...]) -> bool:
    return any(body.rfind(word) >= 0 for word in words)  # from the end is twice as fast


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    value = bytes(raw)
    return _LIST.decode(value) if value.startswith(b"[") else []
