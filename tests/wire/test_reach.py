"""Reach questions and answers on the wire: bounded, read without trust."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InvalidMessage
from p2pnode.wire.pb.p2pnode.v1 import reach_pb2
from p2pnode.wire.reach import (
    MAX_ANSWER_BYTES,
    MAX_ASKED,
    MAX_QUESTION_BYTES,
    MAX_TRIES,
    ReachAnswer,
    Try,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
    place_of,
)
from tests.properties import many, some

ports = st.integers(1, 65535)
ips = st.ip_addresses().map(lambda ip: f"/ip{ip.version}/{ip}")
names = st.sampled_from(["/dns/boot", "/dns4/tasks.CHORUS_chorus", "/dns6/a-b.example.org"])
places = st.builds(lambda where, port: f"{where}/tcp/{port}", ips, ports)
announced = st.builds(lambda where, port: f"{where}/tcp/{port}", ips | names, ports)
tries = st.lists(st.builds(Try, places, st.booleans()), max_size=MAX_TRIES, unique_by=lambda each: each.addr)
answers = st.builds(ReachAnswer, st.just("") | places, tries.map(tuple))


@some
@given(st.lists(announced, max_size=MAX_ASKED, unique=True))
def test_a_question_is_read_as_it_was_asked(addrs: list[str]) -> None:
    assert decode_question(encode_question(addrs)) == tuple(addrs)


@some
@given(answers)
def test_an_answer_is_read_as_it_was_told(answer: ReachAnswer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@many
@given(st.binary(max_size=200))
def test_any_bytes_are_a_question_or_refused_as_one(body: bytes) -> None:
    try:
        addrs = decode_question(body)
    except InvalidMessage:
        return
    assert decode_question(encode_question(addrs)) == addrs


@many
@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_refused_as_one(body: bytes) -> None:
    try:
        answer = decode_answer(body)
    except InvalidMessage:
        return
    assert decode_answer(encode_answer(answer)) == answer


@many
@given(answers, st.data())
def test_an_answer_changed_anywhere_is_refused_or_still_one(answer: ReachAnswer, data: st.DataObject) -> None:
    body = bytearray(encode_answer(answer)) or bytearray(1)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        told = decode_answer(bytes(body))
    except InvalidMessage:
        return
    assert decode_answer(encode_answer(told)) == told


@many
@given(st.text(max_size=40) | announced)
def test_any_text_is_an_address_or_refused(addr: str) -> None:
    try:
        host, port = place_of(addr)
    except InvalidMessage:
        return
    assert 0 < port < 65536
    assert bool(host) == addr.startswith("/ip")


def test_addresses_that_do_not_fit_are_left_out_of_a_question() -> None:
    many_addrs = [f"/ip4/10.0.0.{number}/tcp/9000" for number in range(100)]
    assert decode_question(encode_question(["/ip4/10.0.0.1/udp/1/quic-v1", "", *many_addrs])) == tuple(
        many_addrs[:MAX_ASKED]
    )


def asked(*addrs: str) -> bytes:
    return reach_pb2.ReachQuestion(addrs=addrs).SerializeToString()


def told(*addrs: str, observed: str = "") -> bytes:
    written = [reach_pb2.ReachTry(addr=addr) for addr in addrs]
    return reach_pb2.ReachAnswer(observed=observed, tries=written).SerializeToString()


GOOD = "/ip4/10.0.0.1/tcp/1"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(MAX_QUESTION_BYTES + 1), "oversize"),
        (b"\xff", "protobuf"),
        (asked(*([GOOD] * (MAX_ASKED + 1))), "oversize"),
        (asked(GOOD, ""), "addr"),
        (asked("/ip4/10.0.0.1/tcp/0"), "addr"),
        (asked("/ip4/10.0.0.1/tcp/65536"), "addr"),
        (asked("/ip4/10.0.0.256/tcp/1"), "addr"),
        (asked("/ip6/10.0.0.1/tcp/1"), "addr"),
        (asked("/ip4/10.0.0.1/tcp/1/p2p/x"), "addr"),
        (asked("/dns/" + "a" * 300 + "/tcp/1"), "addr"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_question(body)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(MAX_ANSWER_BYTES + 1), "oversize"),
        (b"\xff", "protobuf"),
        (told(*(f"/ip4/10.0.0.1/tcp/{port}" for port in range(1, MAX_TRIES + 2))), "oversize"),
        (told(GOOD, GOOD), "addr"),
        (told(""), "addr"),
        (told("/dns/boot/tcp/1"), "addr"),
        (told(observed="somewhere"), "addr"),
        (told(observed="/dns/boot/tcp/1"), "addr"),
    ],
)
def test_a_wrong_answer_says_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_answer(body)
    assert caught.value.reason == reason
