"""What a command logs, as lines on stderr: plain, or one JSON object each (`--log-format json`)."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from danbooru_index.errors import UsageError

PACKAGE = "danbooru_index"
ERASE = "\r\x1b[K"  # to the line's beginning, and clear it
FORMATS = ("text", "json")


moving = threading.Lock()  # held by whoever writes on stderr beside a line that moves
bars_elsewhere = threading.Event()  # another library's bars are there


class LineHandler(logging.Handler):
    """Writes each record as a line on stderr, in the place of a line that moves there."""

    def emit(self, record: logging.LogRecord) -> None:
        with moving:
            erase = ERASE if sys.stderr.isatty() else ""
            sys.stderr.write(f"{erase}{self.format(record)}\n")
            sys.stderr.flush()


def log_to_stderr() -> None:
    """Show what this package logs, from INFO on, as plain lines on stderr."""
    package = logging.getLogger("danbooru_index")
    package.setLevel(logging.INFO)
    if not any(isinstance(handler, LineHandler) for handler in package.handlers):
        package.addHandler(LineHandler())


@contextlib.contextmanager
def other_bars() -> Iterator[None]:
    """Another library shows bars of its own on stderr: no line moves meanwhile."""
    with moving:
        bars_elsewhere.set()
        if sys.stderr.isatty():
            redraw(sys.stderr, "")
    try:
        yield
    finally:
        bars_elsewhere.clear()


def redraw(stream: TextIO, text: str) -> None:
    """Write `text` in the place of the line that moves there."""
    stream.write(f"{ERASE}{text}")
    stream.flush()


def event(name: str, **fields: Any) -> dict[str, Any]:
    """The `extra` of a log call: what happened, by name, and to what.

    >>> log.info("node a is gone", extra=event("node_gone", node="a"))
    """
    return {"event": name, "fields": fields}


class JsonLines(logging.Formatter):
    """`{"time", "level", "event", "message", ...}`: time in UTC, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"),
            "message": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=False, default=str)


def set_log_format(name: str) -> None:
    """Have the package's handlers write in this format; as JSON, each shard has a line too. Raises
    `UsageError` for a format that is none.
    """
    if name not in FORMATS:
        raise UsageError(f"--log-format takes text or json, not {name!r}")
    package = logging.getLogger(PACKAGE)
    package.setLevel(logging.DEBUG if name == "json" else logging.INFO)
    for handler in package.handlers:
        handler.setFormatter(JsonLines() if name == "json" else None)


def writes_json() -> bool:
    """Whether the package's lines are JSON now."""
    handlers = logging.getLogger(PACKAGE).handlers
    return any(isinstance(handler.formatter, JsonLines) for handler in handlers)
