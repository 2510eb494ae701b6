"""Finds the model in a form that is passed on while it comes in.

Only what precedes the first file is looked at: `model` is a short field, clients write it
first, and waiting for it behind a file would mean keeping the file. Servers differ in which of two
they take, so a second one is refused: before the upload begins, or in the middle of it. Otherwise
whoever may use one model would name it first and another one last.
"""

import re

from llmproxy.errors import InvalidRequest

LOOK_AT = 64 * 1024  # bytes
LONGEST_HEAD = 8 * 1024  # bytes, of one part

_BOUNDARY = re.compile(rb'[;\s]boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
# What one reader or another takes for it, too.
_BOUNDARIES = re.compile(rb"[;\s]boundary(?:\*[0-9*]*)?\s*=", re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name=(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE)
# Beside the plain ones those that some readers put together out of pieces.
_NAMES = re.compile(
    rb'[;\s]name(\*[0-9*]*)?\s*=\s*(?:"((?:[^"\\]|\\.)*)|([^\s;"]+))', re.IGNORECASE | re.DOTALL
)
_FILE = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)


def boundary_of(content_type: bytes) -> bytes | None:
    """Return the boundary of a multipart form, None for any other type or if there are two."""
    if not content_type.lower().startswith(b"multipart/form-data"):
        return None
    if len(_BOUNDARIES.findall(content_type)) != 1:
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
            raise _given_twice()
        text, over, _ = value.partition(b"\r\n")
        if not over:
            return None, True  # the value may go on
        at = begin + len(head) + len(blank)
        found = slice(at, at + len(text))
    return found, found is None


class OneModel:
    """Sees to it that a form on its way names a model once at most, wherever that stands."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"\r\n--" + boundary
        self._kept = b"\r\n"  # what the next piece may complete; before the first part is no line
        self._named = False
        self._over = False

    def note(self, piece: bytes) -> None:
        """Take notice of the next piece; raise `InvalidRequest` when it names another model."""
        if self._over:
            return
        data, mark = self._kept + piece, self._mark
        at = data.find(mark)
        while at >= 0:
            begin = at + len(mark)
            end = data.find(b"\r\n\r\n", begin)
            if data.startswith(b"--", begin):
                self._over = True
                return
            if end < 0:
                break
            if _may_be_model(data[begin:end]):
                if self._named:
                    raise _given_twice()
                self._named = True
            at = data.find(mark, end)
        self._kept = data[at:] if at >= 0 else data[1 - len(mark) :]
        if len(self._kept) > len(mark) + LONGEST_HEAD:
            raise InvalidRequest("The head of a part of this form is too long.")


def _may_be_model(head: bytes) -> bool:
    """Tell whether some server may take a part for `model`."""
    return any(
        match[1] is not None or re.sub(rb"\\(.)", rb"\1", match[2] or match[3] or b"") == b"model"
        for match in _NAMES.finditer(head)
    )


def _given_twice() -> InvalidRequest:
    return InvalidRequest("`model` is given more than once.", param="model")
