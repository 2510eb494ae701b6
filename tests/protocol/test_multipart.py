"""The model in a form."""

import pytest

from llmproxy.errors import InvalidRequest
from llmproxy.protocol.multipart import LONGEST_HEAD, OneModel, boundary_of, place_of_model


def part(head: bytes, value: bytes) -> bytes:
    """Return one part of a form."""
    return b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head, value)


MODEL = part(b'name="model"', b"whisper")
FILE = part(b'name="file"; filename="a.wav"', b"RIFF")
END = b"--b--\r\n"


def watched(form: bytes, *, size: int) -> None:
    watch = OneModel(b"b")
    for start in range(0, len(form), size):
        watch.note(form[start : start + size])


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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "head",
    [
        b'name="model"',
        b"name=model",
        b'NAME = "model"',
        b'name="mod\\el"',
        b'x="; name=foo"; name="model"',
        b'name*0="mo"; name*1="del"',
        b"name*=utf-8''model",
        b'name="model"; filename="a"',
    ],
)
@pytest.mark.parametrize("behind", [FILE, FILE + FILE, b""])
def test_a_second_model_is_refused_wherever_it_stands(
    behind: bytes, head: bytes, size: int
) -> None:
    """Else the first would be the one that is allowed, and the last the one that is used."""
    with pytest.raises(InvalidRequest):
        watched(MODEL + behind + part(head, b"large") + END, size=size)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "form",
    [
        MODEL + FILE + END,
        FILE + MODEL + END,
        MODEL + part(b'name="file"; filename="model"', b'a --b\r\nname="model"\r\n\r\n') + END,
        MODEL + part(b'name="models"', b"large") + part(b'name=""', b"model") + END,
        MODEL + FILE + END + b"\r\n" + MODEL,
        b"before\r\n" + MODEL + FILE + END,
    ],
    ids=["usual", "behind", "in_a_file", "other_names", "after_the_end", "with_a_preface"],
)
def test_one_model_is_enough(form: bytes, size: int) -> None:
    """What only looks like a second one is none."""
    watched(form, size=size)


def test_a_part_whose_head_has_no_end_is_refused() -> None:
    """It would have to be kept to be understood; a file, of whatever size, is not."""
    watched(MODEL + FILE[:-2] + b"x" * 10 * LONGEST_HEAD, size=1000)

    with pytest.raises(InvalidRequest):
        watched(MODEL + b"--b\r\nx-filler: " + b"x" * 2 * LONGEST_HEAD, size=1000)


@pytest.mark.parametrize(
    "second", [b"boundary=bar", b'x="; boundary=bar"', b"boundary*=utf-8''bar", b"BOUNDARY = bar"]
)
def test_a_form_with_two_boundaries_is_not_looked_into(second: bytes) -> None:
    """Servers differ in which of them they take, and so in which parts they see."""
    assert boundary_of(b"multipart/form-data; boundary=foo; " + second) is None
    assert boundary_of(b"multipart/form-data; " + second + b"; boundary=foo") is None


def test_a_parameter_that_ends_in_boundary_is_another_one() -> None:
    """What it says would hide the true parts."""
    assert boundary_of(b"multipart/form-data; xboundary=foo; boundary=bar") == b"bar"
    assert boundary_of(b'multipart/form-data;boundary="a b"') == b"a b"
    assert boundary_of(b"application/json; boundary=b") is None
