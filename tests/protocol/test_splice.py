"""Putting a body together from what it was and what is put in."""

from llmproxy.protocol.splice import READ_AGAIN, spliced, tries


def test_bytes_are_put_in_the_place_of_others() -> None:
    """Or between two, and all others stay."""
    assert spliced(b"abcdef", 2, 4, b"XYZ") == b"abXYZef"
    assert spliced(b"abcdef", 1, 1, b"-") == b"a-bcdef"


def test_a_large_body_is_tried_less_often() -> None:
    """Reading it again is what takes long; twice it may always be."""
    assert tries(b"x" * 1000, 8) == 8
    assert tries(bytes(READ_AGAIN // 4), 8) == 3
    assert tries(bytes(2 * READ_AGAIN), 8) == 2
