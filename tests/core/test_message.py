"""Topic names and message ids, as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.message import MAX_TOPIC_BYTES, format_message_id, parse_message_id, parse_topic
from p2pnode.core.peerid import is_peer_id, peer_id_bytes, peer_id_text
from p2pnode.errors import InvalidMessage
from tests.properties import many

RAW_IDS = st.one_of(
    st.binary(min_size=1, max_size=42).map(lambda body: bytes((0, len(body))) + body),
    st.binary(min_size=32, max_size=32).map(lambda body: b"\x12\x20" + body),
)
ORIGIN = b"\x12\x20" + b"o" * 32
ALPHABET = "abcXYZ019_-./:"


@many
@given(origin=RAW_IDS, number=st.integers(0, 2**64 - 1))
def test_a_message_id_survives_text_and_back(origin: bytes, number: int) -> None:
    message_id = origin + number.to_bytes(8, "big")
    assert parse_message_id(format_message_id(message_id)) == message_id


@many
@given(text=st.text())
def test_any_text_is_a_message_id_or_is_refused_as_one(text: str) -> None:
    try:
        message_id = parse_message_id(text)
    except InvalidMessage:
        return
    assert is_peer_id(message_id[:-8])


@pytest.mark.parametrize(
    "seqno",
    ["", "-1", "+1", "1.0", "one", " 1", "1 ", "٣", str(2**64), "9" * 5000],
    ids=lambda text: text[:8] or "empty",
)
def test_a_message_id_whose_number_is_no_seqno_is_refused(seqno: str) -> None:
    with pytest.raises(InvalidMessage, match="no message id"):
        parse_message_id(f"{peer_id_text(ORIGIN)}-{seqno}")


@pytest.mark.parametrize("text", ["", "x", "12D3KooW-1", "0-1", f"{'1' * 100_000}-1", f"{peer_id_text(ORIGIN)} -1"])
def test_a_message_id_whose_origin_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_message_id(text)


@many
@given(raw=RAW_IDS)
def test_a_peer_id_survives_text_and_back(raw: bytes) -> None:
    assert is_peer_id(raw)
    assert peer_id_bytes(peer_id_text(raw)) == raw


@many
@given(raw=st.binary(max_size=80))
def test_bytes_are_a_peer_id_or_are_refused_as_one(raw: bytes) -> None:
    if is_peer_id(raw):
        assert peer_id_bytes(peer_id_text(raw)) == raw
    else:
        with pytest.raises(InvalidMessage, match="no peer id"):
            peer_id_text(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"\x00\x00", b"\x00\x2b" + b"k" * 43, b"\x12\x1f" + b"h" * 31, b"\x11\x14" + b"h" * 20]
)
def test_other_multihashes_are_no_peer_ids(raw: bytes) -> None:
    assert not is_peer_id(raw)


@many
@given(name=st.text(alphabet=ALPHABET, min_size=1, max_size=MAX_TOPIC_BYTES).filter(lambda name: name[0] not in "./:"))
def test_a_topic_name_of_allowed_characters_is_taken_as_it_is(name: str) -> None:
    assert parse_topic(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "two words",
        "tab\t",
        "line\n",
        "ümlaut",
        "٣",
        ".hidden",
        "/rooted",
        ":colon",
        "star*",
        "x" * 201,
        "a\0b",
    ],
)
def test_a_bad_topic_name_is_refused_with_what_is_right(name: str) -> None:
    with pytest.raises(InvalidMessage, match=r"topic") as caught:
        parse_topic(name)
    assert caught.value.reason == "topic"
