"""Cells, tables and times."""

from __future__ import annotations

import json

import pytest

from p2pnode.cli import output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (0, "0"),
        (0.0, "0.0"),
        (True, "yes"),
        (False, "no"),
        (1.26, "1.3"),
        (["a", "b"], "a,b"),
        ({"a": 1}, '{"a":1}'),
        ("a\x1b[31mb\n", "a\\x1b[31mb\\n"),
        ("é…", "é…"),
    ],
)
def test_unknown_is_a_dash_and_nothing_reaches_the_terminal_raw(value: object, text: str) -> None:
    assert output.cell(value) == text


def test_tables_are_aligned_and_lines_end_without_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["NAME", "X"], [["a", "1"], ["longer", "22"]])
    assert capsys.readouterr().out == "NAME    X\na       1\nlonger  22\n"


def test_json_stays_json_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"é": "\x9b31m\x7f\x1b"}
    output.print_json(document)
    out = capsys.readouterr().out
    assert json.loads(out) == document
    assert "\x9b" not in out
    assert "é" in out


def test_a_list_takes_a_line_for_each_item(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields({"a": ["x", "y"], "long": None})
    assert capsys.readouterr().out == "a     x\n      y\nlong  -\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m"), (792000, "9d04h")]
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_times_of_any_precision_are_read() -> None:
    assert output.epoch_seconds("1970-01-01T00:00:10.123456789Z") == pytest.approx(10.123456)
    assert output.epoch_seconds("1970-01-01T01:00:10.5+01:00") == 10.5
    assert output.epoch_seconds("1970-01-01T00:00:10Z") == 10


@pytest.mark.parametrize("value", [None, 5, "", "yesterday", "1970-01-01T00:00:10"])
def test_what_is_no_time_is_none(value: object) -> None:
    assert output.epoch_seconds(value) is None
