"""Everything that can be configured, checked once, before the first request.

No other part reads files or the environment: below, everything is given what it needs.
"""

from llmproxy.settings.faults import Fault, SettingsError
from llmproxy.settings.loading import Loaded, Origin, load
from llmproxy.settings.model import Settings

__all__ = ["Fault", "Loaded", "Origin", "Settings", "SettingsError", "load"]
