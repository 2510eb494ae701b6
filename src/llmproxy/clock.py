"""Which clock is used for what.

`now` is monotonic: every deadline and every duration. `wall` is the calendar: what is
written into logs and answers, and nothing that is decided.
"""

import time

now = time.monotonic
wall = time.time
