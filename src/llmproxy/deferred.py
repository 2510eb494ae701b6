"""The app behind `uvicorn llmproxy:app`.

Made of the environment when a server first calls it, so that importing the package reads
none. A real object and not a name that is looked up late: hypercorn takes it out of the
module's dictionary.
"""

from typing import TYPE_CHECKING, Any

from llmproxy.types import Receive, Scope, Send

if TYPE_CHECKING:
    from llmproxy.application import LLMProxy


class DeferredApp:
    """Stands for the proxy until somebody wants something of it."""

    def __init__(self) -> None:
        self._made: LLMProxy | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from llmproxy.settings import SettingsError

        try:
            app = self.made()
        except SettingsError as exc:
            if scope["type"] != "lifespan":
                raise
            # A server takes an exception here for an app without a lifespan, and would go on
            # to serve nothing but errors.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        await app(scope, receive, send)

    def made(self) -> "LLMProxy":
        """Return the proxy itself."""
        if self._made is None:
            from llmproxy.application import create_app

            self._made = create_app()
        return self._made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made(), name)
