"""Log lines can be read by programs and by people, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode.logs import LogFormat, LogLevel, Throttled, configure_logging, quiet_libraries

LIBRARIES = ("libp2p", "httpx", "httpcore", "hypercorn", "hypercorn.error", "hypercorn.access")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), *map(logging.getLogger, LIBRARIES)]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]


def _configured(level: LogLevel = "info", format: LogFormat = "json") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(level, format, stream)
    return stream


def test_a_json_line_has_time_level_message_logger_then_the_fields() -> None:
    stream = _configured()
    logging.getLogger("p2pnode.node").warning(
        "Received %s", "council opportunity", extra={"council_id": "c1", "project": "p", "count": 2}
    )
    (line,) = _lines(stream)
    assert list(line) == ["time", "level", "message", "logger", "council_id", "project", "count"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "message": "Received council opportunity",
        "logger": "p2pnode.node",
        "council_id": "c1",
        "project": "p",
        "count": 2,
    }


def test_a_record_stays_one_line_whatever_its_fields_hold() -> None:
    stream = _configured()
    awkward = {
        "path": Path("/x"),
        "raw": b"\x00\xff",
        "nan": float("nan"),
        "deep": {("a", 1): {3, 2, 1}, "list": [float("inf"), None, True, (1, 2)]},
        "text": "line\nbreak \x1b[31m \x7f \u2028 \ud800 ü",
        "level": "taken",
        "error": ValueError("no exc_info"),
    }
    circle: list[Any] = []
    circle.append(circle)
    logging.getLogger("p2pnode").error("x", extra={**awkward, "circle": circle})
    (line,) = _lines(stream)
    assert (line["path"], line["raw"], line["nan"]) == ("/x", "00ff", "nan")
    assert line["deep"] == {"('a', 1)": [1, 2, 3], "list": ["inf", None, True, [1, 2]]}
    assert line["text"] == awkward["text"]
    assert (line["level"], line["level_"], line["error_"]) == ("error", "taken", "no exc_info")


def test_an_exception_becomes_two_fields_of_its_line() -> None:
    stream = _configured()
    try:
        raise ExceptionGroup("several", [ValueError("one"), OSError("two")])
    except ExceptionGroup:
        logging.getLogger("p2pnode").exception("task died", extra={"task": "dial"})
    (line,) = _lines(stream)
    assert line["error"] == "ExceptionGroup: several (2 sub-exceptions)"
    assert "ValueError: one" in line["traceback"]
    assert "test_logs.py" in line["traceback"]


def test_lines_below_the_level_are_not_written() -> None:
    stream = _configured("warning")
    log = logging.getLogger("p2pnode.x")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "at %d", level)
    assert [line["level"] for line in _lines(stream)] == ["warning", "error"]


def test_auto_is_json_when_piped_and_text_on_a_terminal() -> None:
    piped, terminal = io.StringIO(), Terminal()
    configure_logging("info", "auto", piped)
    logging.getLogger("p2pnode").info("one")
    configure_logging("info", "auto", terminal)
    logging.getLogger("p2pnode").info("two")
    assert [line["message"] for line in _lines(piped)] == ["one"]
    assert "two" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"),
    [(Terminal(), None, True), (Terminal(), "1", False), (io.StringIO(), None, False)],
)
def test_text_is_coloured_on_a_terminal_only_and_not_under_no_color(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    configure_logging("info", "text", stream)
    logging.getLogger("p2pnode").info("hello")
    assert ("\x1b[" in stream.getvalue()) is coloured


def test_text_lines_are_aligned_and_show_their_fields() -> None:
    stream = _configured(format="text")
    log = logging.getLogger("p2pnode.host")
    log.info("link opened", extra={"peer": "12D3", "note": "two words", "raw": b"\x01"})
    log.warning("slow", extra={"peer": "12D4"})
    first, second = stream.getvalue().splitlines()
    assert first.index("peer=") == second.index("peer=")
    assert 'peer=12D3 note="two words" raw=01  (p2pnode.host)' in first
    assert re.match(r"\S+Z warning  slow ", second)


def test_what_a_peer_wrote_cannot_steer_the_terminal_or_forge_a_line() -> None:
    stream = _configured(format="text")
    logging.getLogger("p2pnode").info("said %s", "a\nerror forged \x1b[2J", extra={"name_": "b\r\n\x9b31m"})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert r"said a\nerror forged \x1b[2J" in text


def test_a_traceback_follows_its_text_line_indented() -> None:
    stream = _configured(format="text")
    try:
        raise ValueError("bad\x1b[1m")
    except ValueError:
        logging.getLogger("p2pnode").exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert rest[-1] == r"    ValueError: bad\x1b[1m"


def test_configuring_again_replaces_the_stream_and_keeps_other_handlers() -> None:
    mine = logging.NullHandler()
    logging.getLogger().addHandler(mine)
    first, second = _configured(), _configured()
    logging.getLogger("p2pnode").info("once")
    assert (first.getvalue(), len(_lines(second))) == ("", 1)
    assert mine in logging.getLogger().handlers


def test_libraries_are_quiet_below_debug(capsys: pytest.CaptureFixture[str]) -> None:
    stream = _configured("info")
    logging.getLogger("libp2p.network").error("noise")
    logging.getLogger("httpx").info("HTTP Request: GET …")
    logging.getLogger("hypercorn.error").info("Running on …")
    logging.getLogger("hypercorn.error").warning("kept")
    assert [line["message"] for line in _lines(stream)] == ["kept"]
    assert capsys.readouterr() == ("", "")


def test_libp2p_speaks_at_debug_and_only_then() -> None:
    stream = _configured("debug")
    logging.getLogger("libp2p").setLevel(logging.DEBUG)
    logging.getLogger("libp2p.network").debug("heard")
    quiet_libraries("info")
    logging.getLogger("libp2p.network").error("not heard")
    assert [line["message"] for line in _lines(stream)] == ["heard"]


def test_a_library_that_took_our_handler_off_is_quiet_again_after_quiet_libraries() -> None:
    stream = _configured("info")
    libp2p = logging.getLogger("libp2p")
    libp2p.handlers.clear()
    quiet_libraries("info")
    assert len(libp2p.handlers) == 1
    quiet_libraries("info")
    assert len(libp2p.handlers) == 1
    libp2p.error("noise")
    assert stream.getvalue() == ""


def test_importing_logs_configures_nothing() -> None:
    probe = "import logging, p2pnode.logs; print(logging.getLogger().handlers, logging.getLogger().level)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {logging.WARNING}"


def test_lines_that_strangers_cause_are_few_and_say_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    throttled = Throttled(logging.getLogger("test"), lines=2, seconds=60, clock=lambda: now[0])
    for second in (0, 1, 2, 59, 60, 61, 62):
        now[0] = second
        throttled.warning("a stranger knocks", {"second": second})
    told = [(vars(record)["second"], vars(record).get("suppressed")) for record in caplog.records]
    assert told == [(0, None), (1, None), (60, 2), (61, None)]


def test_a_throttled_exception_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    throttled = Throttled(logging.getLogger("test"), lines=1)
    for _ in range(3):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            throttled.exception("a reader failed")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
