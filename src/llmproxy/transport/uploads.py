"""Holds an upload to the length that its head has announced."""

from collections.abc import AsyncIterator

from llmproxy.errors import InvalidRequest
from llmproxy.records import Upload


async def counted(upload: Upload) -> AsyncIterator[bytes]:
    """Pass the pieces on; raise before a byte too many, or at an end that comes too soon.

    What is sent beyond the announced length would be the beginning of another request.
    """
    left = upload.length
    async for piece in upload:
        if left is not None:
            left -= len(piece)
            if left < 0:
                raise InvalidRequest("The body is longer than its Content-Length.")
        yield piece
    if left:
        raise InvalidRequest("The body is shorter than its Content-Length.")
