"""The model in a form."""

import pytest

from llmproxy.errors import InvalidRequest
from llmproxy.protocol.multipart import boundary_of, place_of_model


def part(head: bytes, value: bytes) -> bytes:
    """Return one part of a form."""
    return b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head, value)


MODEL = part(b'name="model"', b"whisper")
FILE = part(b'name="file"; filename="a.wav"', b"RIFF")


@pytest.mark.parametrize("head", [b'name="model"', b"name=model", b'NAME="model"'])
def test_it_is_found_however_its_name_is_written(head: bytes) -> None:
    """A server that reads it must not read another one than we do."""
    form = part(head, b"whisper") + FILE
    place, undecided = place_of_model(form, b"b")

    assert place is not None
    assert (form[place], undecided) == (b"whisper", False)


def test_what_stands_behind_a_file_is_not_looked_for() -> None:
    """That would mean keeping the file."""
    assert place_of_model(FILE + MODEL, b"b") == (None, False)


@pytest.mark.parametrize("second", [b'name="model"', b"name=model"])
def test_two_models_are_refused(second: bytes) -> None:
    """Servers differ in which of them they take."""
    with pytest.raises(InvalidRequest):
        place_of_model(MODEL + part(second, b"large") + FILE, b"b")


def test_a_parameter_that_ends_in_boundary_is_another_one() -> None:
    """What it says would hide the true parts."""
    assert boundary_of(b"multipart/form-data; xboundary=foo; boundary=bar") == b"bar"
    assert boundary_of(b'multipart/form-data;boundary="a b"') == b"a b"
    assert boundary_of(b"application/json; boundary=b") is None
