"""Subjects and patterns: pure functions."""

from __future__ import annotations

import pytest

from p2pnode.carriers.nats.client import INLINE_STATUS, parse_headers
from p2pnode.carriers.nats.subjects import counted, covers, durable_name, merged, root


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a.b", True),
        ("a.b", "a.*", False),
        ("a.*", "a.*", True),
        ("a.*", "a.>", False),
        ("a.>", "a.*", True),
        ("a.>", "a.>", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.*.d", False),
        ("*.*", "a.>", False),
    ],
)
def test_a_pattern_covers_what_it_holds_and_no_more(pattern: str, subject: str, expected: bool) -> None:
    assert covers(pattern, subject) is expected


def test_a_council_s_id_is_no_label() -> None:
    assert counted("chorus.councils.7c31.status") == "chorus.councils.*.status"
    assert counted("chorus.councils.7c31.claims") == "chorus.councils.*.claims"
    assert counted("chorus.councils.forming") == "chorus.councils.forming"
    assert counted("backbeat.status.c1") == "backbeat.status.c1"


def test_durable_names_are_valid_and_differ_where_subjects_do() -> None:
    subjects = ["a.b", "a_b", "a.*", "a.any", "a.>", "a.all", "ä.b", "x" * 3000]
    names = [durable_name("12D3.bridge *", each) for each in subjects]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 100
        assert all(each.isascii() and (each.isalnum() or each in "-_") for each in name)
    assert durable_name("x", "a.b") == durable_name("x", "a.b") != durable_name("y", "a.b")


def test_a_stream_s_subjects_never_hold_each_other() -> None:
    assert merged(["chorus.councils.forming", "hmmm.>"], "chorus.councils.>") == ["hmmm.>", "chorus.councils.>"]
    assert merged(["chorus.councils.>"], "chorus.councils.forming") == ["chorus.councils.>"]
    assert merged([], "a") == ["a"]
    assert root("chorus.councils.*.status") == "chorus.councils.>"
    assert root("backbeat.status.c1") == "backbeat.status.c1"


def test_the_server_s_status_and_a_publisher_s_header_are_kept_apart() -> None:
    assert parse_headers(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n") == {
        INLINE_STATUS: "408 Request Timeout",
        "Nats-Pending-Messages": "1",
    }
    assert parse_headers(b"NATS/1.0\r\nStatus: 408\r\nstatus:b\r\nStatus: 2\r\nno colon\r\n: x\r\na b: c\r\n\r\n") == {
        "Status": "408",
        "status": "b",
    }
    assert parse_headers(b"") == parse_headers(b"\r\n") == {}
