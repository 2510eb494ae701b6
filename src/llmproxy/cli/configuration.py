"""Loading settings for a command, and telling what is wrong with them."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmproxy.settings import Loaded, Settings

BAD_CONFIGURATION = 2  # the exit code

NO_UPSTREAM = """\
llmproxy: no upstream is configured. Say where the model servers are, for example:
  LLMPROXY_UPSTREAMS=http://127.0.0.1:8000 llmproxy serve
or try it without one:
  llmproxy serve --demo"""


def loaded(arguments: Mapping[str, object] | None = None) -> "Loaded[Settings] | None":
    """Return the settings of this process; None after telling what is wrong with them."""
    from llmproxy.settings import Settings, SettingsError, load

    try:
        return load(Settings, os.environ, arguments)
    except SettingsError as exc:
        faults = len(exc.faults)
        print(
            f"llmproxy: the configuration has {faults} fault{'s' if faults > 1 else ''}:",
            file=sys.stderr,
        )
        for fault in exc.faults:
            print(f"  {fault}", file=sys.stderr)
        return None
