"""The models there are, over all servers and under all their names."""

from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote_to_bytes

from llmproxy.errors import ModelNotFound
from llmproxy.routing.model_list import merged
from llmproxy.routing.registry import Registry

_LIST = b"/v1/models"


class Catalogue:
    """Answers what a caller asks of the list of models."""

    def __init__(
        self,
        registry: Registry,
        *,
        aliases: Sequence[str],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._aliases = aliases
        self.refresh = refresh
        """Has every server asked anew for its models."""

    async def answer(self, path: bytes) -> object | None:
        """Return the answer to a request for the list or for one model of it.

        None when no server has told its models: then one of them has to be asked.
        """
        servers = self._registry.servers
        if all(server.documents is None for server in servers):
            await self.refresh()
        if all(server.documents is None and not server.upstream.models for server in servers):
            return None
        models = merged(servers, self._aliases)
        if path == _LIST:
            return {"object": "list", "data": models}
        name = unquote_to_bytes(path[len(_LIST) + 1 :]).decode("utf-8", "replace")
        for model in models:
            if model.get("id") == name:
                return model
        raise ModelNotFound(f"The model `{name[:128]}` is on none of the model servers.")
