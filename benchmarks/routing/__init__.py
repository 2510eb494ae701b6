"""Where requests go, measured: policies against each other before a fleet of modelled engines.

`kv_cache` and `engine` are the model of one engine, pure and with a clock of their own; `fleet`
puts eight of them on sockets. `traffic` is what is asked, `clients` ask it through a real
`llmproxy serve`, `trial` is one run. `scenes` are what is played and what has to come of it, and
`page` tells what did.
"""
