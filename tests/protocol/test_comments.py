"""What is only a comment."""

import time

import pytest

from llmproxy.protocol.comments import is_only_comment


@pytest.mark.parametrize("chunk", [b": ping\n\n", b": a\r\n\r\n: b\r\n\r\n", b":\n", b": x\r\r"])
def test_whole_lines_of_comments_say_nothing(chunk: bytes) -> None:
    """However they end."""
    assert is_only_comment(chunk)


@pytest.mark.parametrize("chunk", [b"", b"\n", b": half", b": a\n\ndata: x\n\n", b"data: :\n\n"])
def test_everything_else_says_something(chunk: bytes) -> None:
    """Half a line may become anything."""
    assert not is_only_comment(chunk)


def test_no_chunk_takes_long_to_tell() -> None:
    """One that matches in two ways at each line end must not be tried in all of them."""
    chunk = b":" + b"\r\n" * 10_000 + b"x"
    began = time.process_time()
    assert not is_only_comment(chunk)
    assert time.process_time() - began < 5.0  # it took longer than the sun will last
