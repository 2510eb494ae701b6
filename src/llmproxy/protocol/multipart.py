"""Finds the model in a form that is passed on while it comes in.

Only what precedes the first file is looked at: `model` is a short field, clients write it
first, and waiting for it behind a file would mean keeping the file. Servers differ in which of two
they take, so a second one among the bytes that are looked at is refused.
"""

import re

from llmproxy.errors import InvalidRequest

LOOK_AT = 64 * 1024  # bytes

_BOUNDARY = re.compile(rb'[;\s]boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name=(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE)
_FILE = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)


def boundary_of(content_type: bytes) -> bytes | None:
    """Return the boundary of a multipart form, None for any other type."""
    if not content_type.lower().startswith(b"multipart/form-data"):
        return None
    match = _BOUNDARY.search(content_type)
    return (match[1] or match[2]) if match else None


def place_of_model(start: bytes, boundary: bytes) -> tuple[slice | None, bool]:
    """Return where the value of `model` stands in the first bytes of a form.

    Beside it: whether more bytes could change that.
    """
    mark = b"--" + boundary
    first, *parts = start.split(mark)
    end = len(first)
    found: slice | None = None
    for part in parts:
        begin, end = end + len(mark), end + len(mark) + len(part)
        head, blank, value = part.partition(b"\r\n\r\n")
        if not blank:
            return found, found is None
        if _FILE.search(head):
            return found, False
        name = _NAME.search(head)
        if name is None or (name[1] or name[2]) != b"model":
            continue
        if found is not None:
            raise InvalidRequest("`model` is given more than once.", param="model")
        text, over, _ = value.partition(b"\r\n")
        if not over:
            return None, True  # the value may go on
        at = begin + len(head) + len(blank)
        found = slice(at, at + len(text))
    return found, found is None
