"""Log lines: JSON for programs, aligned text for people; nothing is configured at import."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

_RECORD_ATTRIBUTES: Final = frozenset(
    vars(logging.LogRecord("", 0, "", 0, "", None, None)).keys() | {"message", "asctime", "taskName"}
)
_OUR_KEYS: Final = frozenset({"time", "level", "message", "logger", "error", "traceback"})
_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_MESSAGE_COLUMNS: Final = 44


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, `logger`, then the fields of `extra={…}`.

    `time` is RFC 3339 in UTC with milliseconds, `level` is lower-case. With an exception come `error`
    (`Type: message`) and `traceback`. A field whose name is taken gets a `_` behind it. What JSON cannot
    hold is written as text: a log line never fails, and is always valid JSON in ASCII.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        for key, value in extra_fields(record).items():
            line[f"{key}_" if key in _OUR_KEYS else key] = _jsonable(value)
        if error := _error(record):
            line["error"] = error
        if traceback := _traceback(self, record):
            line["traceback"] = traceback
        return json.dumps(line, allow_nan=False)


class TextFormatter(logging.Formatter):
    """`time level message key=value …  (logger)`, in columns; a traceback follows, indented.

    Args:
        colour: mark the level, and dim what matters less.
    """

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_word(value)}" for key, value in extra_fields(record).items())
        message = _printable(record.getMessage())
        if fields:
            message = f"{message:<{_MESSAGE_COLUMNS}} {fields}"
        time, level = _rfc3339(record.created), f"{record.levelname.lower():<8}"
        origin = f"({record.name})"
        if self._colour:
            time, origin = f"\x1b[2m{time}\x1b[0m", f"\x1b[2m{origin}\x1b[0m"
            level = f"{_COLOURS.get(record.levelno, '')}{level}\x1b[0m"
        lines = [f"{time} {level} {message}  {origin}"]
        lines.extend(f"    {_printable(line)}" for line in _traceback(self, record).splitlines())
        return "\n".join(lines)


class _OurHandler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure_logging` may take off again."""


def configure_logging(level: LogLevel, format: LogFormat, stream: TextIO) -> None:
    """Send every log line of the process to `stream`; calling it again replaces what it did before.

    Importing libp2p takes handlers off its logger, so after that import call `quiet_libraries` (or this) again.

    Args:
        level: the least that is written.
        format: `auto` is text on a terminal and JSON elsewhere.
        stream: where lines go, usually standard error. Colour only on a terminal, and not under `NO_COLOR`.
    """
    terminal = stream.isatty()
    handler = _OurHandler(stream)
    if format == "json" or (format == "auto" and not terminal):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter(colour=terminal and not os.environ.get("NO_COLOR")))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    quiet_libraries(level)


def quiet_libraries(level: LogLevel) -> None:
    """Keep libraries from filling the log: libp2p speaks at `debug` only, HTTP libraries from warnings on.

    At `debug` libp2p's own level still counts: warnings, unless `LIBP2P_DEBUG` says otherwise.
    """
    libp2p = logging.getLogger("libp2p")
    # Without any handler Python writes warnings to standard error by itself (`logging.lastResort`).
    if not any(isinstance(each, logging.NullHandler) for each in libp2p.handlers):
        libp2p.addHandler(logging.NullHandler())
    libp2p.propagate = level == "debug"
    for name in ("httpx", "httpcore", "hypercorn", "hypercorn.error", "hypercorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Throttled:
    """One kind of log line that strangers can cause at will, so that they cannot fill a disk with it.

    So many are written in a period, and the next one says in `suppressed` how many were not.

    Args:
        log: where to.
        lines: written in each period.
        seconds: the period.
        clock: seconds.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        lines: int = 10,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._until = -math.inf
        self._left = 0
        self._suppressed = 0

    def warning(self, message: str, fields: Mapping[str, Any]) -> None:
        self._write(logging.WARNING, message, fields, exc_info=False)

    def exception(self, message: str) -> None:
        """With the traceback of the exception that is being handled."""
        self._write(logging.ERROR, message, {}, exc_info=True)

    def _write(self, level: int, message: str, fields: Mapping[str, Any], *, exc_info: bool) -> None:
        now = self._clock()
        if now >= self._until:
            self._until, self._left = now + self._seconds, self._lines
        if not self._left:
            self._suppressed += 1
            return
        self._left -= 1
        suppressed, self._suppressed = self._suppressed, 0
        extra = {**fields, "suppressed": suppressed} if suppressed else dict(fields)
        self._log.log(level, message, extra=extra, exc_info=exc_info)


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as `extra={…}`, in its order."""
    return {key: value for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES}


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return f"{type(error).__name__}: {error}" if error is not None else ""


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[1] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _jsonable(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if depth < 8:
        if isinstance(value, Mapping):
            return {str(key): _jsonable(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [_jsonable(each, depth + 1) for each in value]
        if isinstance(value, set | frozenset):
            return [_jsonable(each, depth + 1) for each in sorted(value, key=str)]
    return str(value)


def _word(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _printable(text: str) -> str:
    """Line breaks and terminal sequences, which a peer may have written, made visible instead of obeyed."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
