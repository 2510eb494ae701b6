"""Finds the model in a form that is passed on while it comes in.

Only what precedes the first file is looked at: `model` is a short field, clients write it
first, and waiting for it behind a file would mean keeping the file.
"""

import re

LOOK_AT = 64 * 1024  # bytes

_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"]*)"', re.IGNORECASE)
_FILE = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)


def boundary_of(content_type: bytes) -> bytes | None:
    """Return the boundary of a multipart form, None for any other type."""
    if not content_type.lower().startswith(b"multipart/form-data"):
        return None
    match = _BOUNDARY.search(content_type)
    return (match[1] or match[2]) if match else None


def find_model(start: bytes, boundary: bytes) -> tuple[str | None, bool]:
    """Look for `model` in the first bytes of a form.

    Returns what was found, and whether more bytes could change that.
    """
    for part in start.split(b"--" + boundary)[1:]:
        head, blank, value = part.partition(b"\r\n\r\n")
        if not blank:
            return None, True
        if _FILE.search(head):
            return None, False
        name = _NAME.search(head)
        if name is None or name[1] != b"model":
            continue
        text, end, _ = value.partition(b"\r\n")
        if not end:
            return None, True  # the value may go on
        return text.decode("utf-8", "replace"), False
    return None, True
