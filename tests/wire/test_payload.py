"""Metadata into and out of a payload: the agent's text stays, and any bytes are read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.metadata import MAX_TIME_NS, Metadata
from p2pnode.errors import InvalidRequest
from p2pnode.wire.payload import (
    MEMBER,
    decode_payload,
    encode_envelope,
    encode_json_payload,
    format_time,
    parse_json,
    parse_json_object,
    parse_time,
)
from tests.properties import many

SPACE = " \t\r\n"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.integers(0, MAX_TIME_NS)
METADATA = st.builds(
    Metadata,
    published_at_ns=st.integers(1, MAX_TIME_NS),
    expires_at_ns=TIMES,
    prev=st.integers(0, 2**64 - 1),
    headers=st.dictionaries(TEXT, TEXT, max_size=4),
    via=TEXT,
    traceparent=TEXT,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.text().filter(lambda name: name != MEMBER), VALUES, max_size=5)
NOW = 1_763_899_200_000_000_000


@many
@given(DOCUMENTS, METADATA, st.sampled_from([None, 1, 4]), st.text(SPACE, max_size=100), st.text(SPACE, max_size=5))
def test_a_json_object_keeps_its_text_and_gains_one_member(
    document: dict[str, object], metadata: Metadata, indent: int | None, before: str, behind: str
) -> None:
    text = before + json.dumps(document, indent=indent)
    data = encode_json_payload((text + behind).encode(), document, metadata)
    assert data.startswith(text[:-1].rstrip(SPACE).encode())
    assert json.loads(data).keys() == {*document, MEMBER}
    payload = decode_payload(data)
    assert payload.document == document
    assert payload.metadata == metadata
    assert payload.content_type == "application/json"


@many
@given(st.binary(max_size=400), TEXT, METADATA)
def test_any_bytes_come_out_of_an_envelope_as_they_went_in(body: bytes, content_type: str, metadata: Metadata) -> None:
    metadata = Metadata(
        min(metadata.published_at_ns, 2**63 - 1),
        min(metadata.expires_at_ns, 2**63 - 1),
        metadata.prev,
        metadata.headers,
    )
    payload = decode_payload(encode_envelope(body, content_type, metadata))
    assert (payload.body, payload.content_type, payload.metadata) == (body, content_type, metadata)


@many
@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: encode_envelope(b"", "", Metadata())[:9] + tail)
)
def test_any_bytes_are_some_payload(data: bytes) -> None:
    payload = decode_payload(data)
    assert payload.metadata is not None or payload.body == data


@many
@given(
    DOCUMENTS, VALUES | st.dictionaries(st.sampled_from(["v", "published_at", "expires_at", "prev", "headers"]), VALUES)
)
def test_a_strangers_p2pnode_member_costs_nobody_anything(document: dict[str, object], member: object) -> None:
    payload = decode_payload(json.dumps({**document, MEMBER: member}).encode())
    assert payload.document is not None
    if payload.metadata is None:
        assert payload.document.keys() == {*document, MEMBER}


@pytest.mark.parametrize(
    "member",
    [
        {"published_at": "2026-11-23T09:00:00Z"},
        {"v": "1", "published_at": "2026-11-23T09:00:00Z"},
        {"v": 1},
        {"v": 1, "published_at": 5},
        {"v": 1, "published_at": "2026-11-23"},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "prev": 5},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "prev": "-5"},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "prev": "9" * 5000},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "headers": {"a": 1}},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "headers": []},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "via": None},
        {"v": 1, "published_at": "2026-11-23T09:00:00Z", "expires_at": "9999-12-31T23:59:59-23:59"},
    ],
)
def test_a_member_of_another_making_is_no_metadata_and_stays(member: dict[str, Any]) -> None:
    payload = decode_payload(json.dumps({"a": 1, MEMBER: member}).encode())
    assert payload.metadata is None
    assert payload.document == {"a": 1, MEMBER: member}


def test_a_newer_version_is_read_as_far_as_it_is_understood() -> None:
    member = {"v": 2, "published_at": format_time(NOW), "new": {"deep": 1}}
    assert decode_payload(json.dumps({MEMBER: member}).encode()).metadata == Metadata(published_at_ns=NOW)


def test_the_reserved_member_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_json_payload(b'{"p2pnode":1}', {MEMBER: 1}, Metadata())
    assert [fault.field for fault in caught.value.faults] == [MEMBER]


@pytest.mark.parametrize("body", [b"{}", b"{ }", b' {\n"a" : 1.50 \n} \n'])
def test_a_plain_reader_sees_the_agents_members_first(body: bytes) -> None:
    document = parse_json_object(body)
    data = encode_json_payload(body, document, Metadata(published_at_ns=NOW, prev=2**63))
    names = [name for name, _ in json.loads(data, object_pairs_hook=list)]
    assert names == [*document, MEMBER]
    # Neither fits a double, so both travel as text.
    assert b'"published_at":"2025-11-23T12:00:00.000000000Z"' in data
    assert b'"prev":"9223372036854775808"' in data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[1]",
        b'"{}"',
        b"{",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":-Infinity}',
        b"{'a':1}",
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_refused_and_kept_as_bytes(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json_object(body)
    payload = decode_payload(body)
    assert (payload.body, payload.document, payload.metadata) == (body, None, None)


@pytest.mark.parametrize(("depth", "good"), [(127, True), (128, False), (1000, False), (100_000, False)])
def test_nesting_is_bounded_so_that_what_was_read_can_be_written(depth: int, good: bool) -> None:
    data = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    payload = decode_payload(data)
    assert (payload.document is not None) is good
    if good:
        assert json.dumps(payload.document, separators=(",", ":")).encode() == data


def test_brackets_in_text_are_no_nesting() -> None:
    assert parse_json(b'{"a":"' + b"[" * 1000 + b'"}') == {"a": "[" * 1000}


@many
@given(TIMES)
def test_a_time_survives_text_and_back(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01z", 1_000_000_000),
        ("1970-01-01T01:00:00.5+01:00", 500_000_000),
        ("2026-11-23T09:00:00.123456789999Z", 1_795_424_400_123_456_789),
        ("9999-12-31T23:59:59.999999999Z", MAX_TIME_NS),
    ],
)
def test_times_are_read_as_rfc_3339_says(text: str, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-23",
        "2026-11-23T09:00:00",
        "2026-11-23 09:00:00Z",
        "2026-02-30T09:00:00Z",
        "2026-11-23T09:00:61Z",
        "2026-11-23T09:00:00+99:00",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "٢٠٢٦-11-23T09:00:00Z",
    ],
)
def test_what_is_no_time_that_can_be_written_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)


@many
@given(st.text(max_size=40))
def test_any_text_is_a_time_or_is_refused(text: str) -> None:
    try:
        ns = parse_time(text)
    except ValueError:
        return
    assert 0 <= ns <= MAX_TIME_NS
