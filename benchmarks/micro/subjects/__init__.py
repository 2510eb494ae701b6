"""The benchmarks, one file for each place. Importing them registers them."""

from benchmarks.micro.subjects import (
    frame,
    limits,
    log,
    metrics,
    protocol,
    relay,
    routing,
    server,
    settings,
    transport,
    usage,
    whole,
)

PLACES = (
    whole,
    server,
    frame,
    limits,
    usage,
    routing,
    relay,
    transport,
    protocol,
    log,
    metrics,
    settings,
)
"""In the order of the table: from the outside in."""
