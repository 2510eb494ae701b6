"""The log of the process itself: what happened to the server, not to a request."""

import logging
import sys
import time

from llmproxy import codec
from llmproxy.errors import ProxyError


def set_up_logging(level: str, form: str) -> logging.Logger:
    """Send every log record to stderr, in the form that the access log has too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    handler.addFilter(is_news)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A library's debugging may show headers and bodies, so it is never asked for; uvicorn's
    # news of its own start and stop are told better by ours.
    for library in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "asyncio"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    return logging.getLogger("llmproxy")


def is_news(record: logging.LogRecord) -> bool:
    """Tell whether a record says something that the access log does not.

    An answer that cannot be finished is raised through the server, so that it cuts the
    connection; the server takes that for a crash of the app and logs a traceback of it.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], ProxyError))


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": record.created,
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            fields["request_id"] = request_id
        if (audit := getattr(record, "audit", None)) is not None:
            fields["audit"] = audit
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return codec.dumps(fields).decode()


class ConsoleFormatter(logging.Formatter):
    """One line for people; a traceback takes several."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{at} {record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
