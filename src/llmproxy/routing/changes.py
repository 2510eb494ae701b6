"""How often it has become another set of servers that could answer a request.

What was found out about them holds as long as the number is the same.
"""

from typing import ClassVar


class Changes:
    """Of all servers of this process."""

    made: ClassVar[int] = 0
