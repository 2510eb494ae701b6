"""The fields at the top of a body, and nothing below them."""

import json

import msgspec
import pytest

from llmproxy.errors import InvalidRequest
from llmproxy.protocol.top_fields import MOST, fields_of, with_field


def test_every_field_is_seen_and_none_twice_for_one() -> None:
    """Not the last of those that are called the same, however they are spelled."""
    body = b'{"model":"a","x":{"model":1},"m\\u006fdel":[ 1.0 ],"model":null}'

    found = [(name, bytes(raw)) for name, raw in fields_of(body)]

    assert found == [
        ("model", b'"a"'),
        ("x", b'{"model":1}'),
        ("model", b"[ 1.0 ]"),
        ("model", b"null"),
    ]


@pytest.mark.parametrize("body", [b"[]", b"1", b'{"a":1', b"", b'{"a":1}x'])
def test_what_is_no_object_has_none(body: bytes) -> None:
    """It is said in the parser's own error."""
    with pytest.raises(msgspec.DecodeError):
        fields_of(body)


def test_more_fields_than_anybody_has_are_refused() -> None:
    """Each takes a while: a body could be made of nothing else."""
    many = [b'"%d":0' % number for number in range(MOST + 1)]

    assert len(fields_of(b"{%b}" % b",".join(many[:-1]))) == MOST
    with pytest.raises(InvalidRequest):
        fields_of(b"{%b}" % b",".join(many))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'{"a": 1.0, "b":[ 1e2 ]}', b'{"a":7,"b":[ 1e2 ]}', id="in_its_place"),
        pytest.param(b'{"b":1e400,"a":null}', b'{"b":1e400,"a":7}', id="last"),
        pytest.param(b'{"b":"\\u00e9"}', b'{"b":"\\u00e9","a":7}', id="new"),
        pytest.param(b"{}", b'{"a":7}', id="alone"),
    ],
)
def test_a_field_is_written_and_the_values_of_others_stay(body: bytes, expected: bytes) -> None:
    """Byte for byte: a number that we could not read is not ours to change."""
    assert with_field(body, "a", b"7") == expected


def test_a_field_that_stood_there_twice_is_written_once() -> None:
    """Nobody can take another one for it."""
    pairs = json.loads(with_field(b'{"a":1,"a":2}', "a", b"7"), object_pairs_hook=list)

    assert pairs == [("a", 7)]
