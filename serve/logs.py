"""What happens to a server, one JSON object a line on standard error."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec


class Lines(logging.Formatter):
    """A record as one line: time, level, event, the fields that it was given, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
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
    """Log to standard error: what this project says, and the warnings of everybody else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("medserve").setLevel(logging.INFO)
