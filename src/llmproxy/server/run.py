"""`serve`: bind the address, start the workers, say so, and stay until a signal."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from llmproxy.server.banner import banner
from llmproxy.server.listening import CannotListen, address_of, listening_as
from llmproxy.server.logging_setup import set_up_logging
from llmproxy.server.supervisor import Supervisor
from llmproxy.settings import Settings, SettingsError, load
from llmproxy.settings.variables import variable_of

CANNOT_LISTEN = 3  # the exit code
FIXED = ("host", "port", "workers")  # what the supervisor itself has taken, once and for all


def run(settings: Settings, *, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal; return the exit code.

    The workers read the configuration themselves, out of the environment that they inherit.
    """
    log = set_up_logging(settings.log_level, settings.log_format)
    for warning in warnings:
        log.warning(warning)

    def reread() -> float | None:
        try:
            loaded = load(Settings, os.environ)
        except SettingsError as exc:
            for fault in exc.faults:
                log.error("%s", fault)
            return None
        for warning in loaded.warnings:
            log.warning(warning)
        for field in FIXED:
            if getattr(loaded.settings, field) != getattr(settings, field):
                log.warning("%s has changed: that takes a restart", variable_of(field))
        return loaded.settings.drain_timeout

    try:
        with listening_as(settings) as listening:
            text = banner(settings, address_of(listening, settings))

            def say_so() -> None:
                with suppress(OSError):  # nobody needs to be there to read it
                    print(text, file=sys.stderr, flush=True)

            return Supervisor(
                listening=listening,
                count=settings.workers,
                drain_timeout=settings.drain_timeout,
                on_ready=say_so,
                reread=reread,
            ).run()
    except CannotListen as exc:
        print(f"llmproxy: {exc}", file=sys.stderr)
        return CANNOT_LISTEN
