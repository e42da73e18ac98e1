"""The log of a server: one JSON object per line on standard error."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec


class Lines(logging.Formatter):
    """A log record as one line: time, level, event, the fields of the record, and the traceback if it has any."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a JSON object."""
        fields = record.args if isinstance(record.args, Mapping) else {}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": str(record.msg) if fields else record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def begin() -> None:
    """Log to standard error: this project at level INFO, libraries at level WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("medserve").setLevel(logging.INFO)
