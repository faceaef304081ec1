"""One JSON object a line, for machines; BentoML's text on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime

from bentoml._internal import log as bentoml_log

from vision.settings import SETTINGS

FIELDS = ("request_id", "route", "status", "ms", "images", "models", "key")
"""What a record may carry in `extra`; nothing of a picture, its name or its caller's address ever does."""


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name in FIELDS if (value := getattr(record, name, None)) is not None},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure() -> None:
    """Set the form of this process's log, and of what BentoML sets up later in it."""
    if SETTINGS.log_format == "json" or (SETTINGS.log_format == "auto" and not sys.stdout.isatty()):
        bentoml_log.SERVER_LOGGING_CONFIG["formatters"]["traced"] = {"()": JsonFormatter}
        bentoml_log.SERVER_LOGGING_CONFIG["handlers"]["tracehandler"]["filters"] = []  # sets request_id to its own
        for handler in [*logging.getLogger("bentoml").handlers, *logging.getLogger().handlers]:
            handler.setFormatter(JsonFormatter())
            handler.filters.clear()
