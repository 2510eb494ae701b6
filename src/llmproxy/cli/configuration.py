"""Loading settings for a command, and telling what is wrong with them."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmproxy.settings import Loaded, Settings

BAD_CONFIGURATION = 2  # the exit code

_WHAT_TO_SET = """\
Say where the model servers are, for example:
  LLMPROXY_UPSTREAMS=http://127.0.0.1:8000 llmproxy serve
or try it without one:
  llmproxy serve --demo"""
NO_UPSTREAM = f"llmproxy: no upstream is configured. {_WHAT_TO_SET}"
NONE_FOUND = (
    "llmproxy: no upstream is configured, and no model server was found on this machine.\n"
    + _WHAT_TO_SET
)


def loaded(*, makes_layers: bool = False) -> "Loaded[Settings] | None":
    """Return the settings of this process; None after telling what is wrong with them.

    With `makes_layers` each layer of the operator's own is made once, to see that it can be.
    """
    from llmproxy.settings import Settings, SettingsError, load

    try:
        return load(Settings, os.environ, makes_layers=makes_layers)
    except SettingsError as exc:
        faults = len(exc.faults)
        print(
            f"llmproxy: the configuration has {faults} fault{'s' if faults > 1 else ''}:",
            file=sys.stderr,
        )
        for fault in exc.faults:
            print(f"  {fault}", file=sys.stderr)
        return None
