"""The benchmarks, one file for each place. Importing them registers them."""

from benchmarks.micro.subjects import (
    frame,
    log,
    metrics,
    protocol,
    relay,
    server,
    settings,
    transport,
    whole,
)

PLACES = (whole, server, frame, relay, transport, protocol, log, metrics, settings)
"""In the order of the table: from the outside in."""
