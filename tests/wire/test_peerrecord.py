"""Signed peer records: what the library makes is read, what anybody forged is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord as LibraryRecord
from multiaddr.multiaddr import Multiaddr

from p2pnode.errors import InvalidMessage
from p2pnode.identity import Identity, verifier_for
from p2pnode.wire.pb.libp2p.v1.peer_record_pb2 import Envelope, PeerRecord
from p2pnode.wire.peerrecord import MAX_ADDRS, MAX_RECORD_BYTES, read_peer_record
from tests.properties import many

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
ADDRS = ["/ip4/10.0.0.1/tcp/9000", "/ip6/::1/tcp/9000", "/dns4/tasks.chorus/tcp/9000"]


def verify(peer: bytes, key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        return verifier_for(peer, key)(data, signature)
    except InvalidMessage:
        return False


def library_record(addrs: list[str], *, of: Identity = ALICE, signer: Identity | None = None, seq: int = 7) -> bytes:
    """As py-libp2p's identify sends it."""
    record = LibraryRecord(ID(of.peer_id_bytes), [Multiaddr(addr) for addr in addrs], seq)
    return seal_record(record, Ed25519PrivateKey.from_bytes((signer or of).seed)).marshal_envelope()


def reason(envelope: bytes) -> str:
    with pytest.raises(InvalidMessage) as caught:
        read_peer_record(envelope, verify)
    return caught.value.reason


def changed(envelope: bytes, **fields: bytes) -> bytes:
    sealed = Envelope.FromString(envelope)
    for name, value in fields.items():
        setattr(sealed, name, value)
    return sealed.SerializeToString()


def test_a_record_made_by_the_library_is_read() -> None:
    record = read_peer_record(library_record(ADDRS), verify)
    assert (record.peer, record.seq, record.addrs) == (ALICE.peer_id, 7, tuple(ADDRS))


def test_a_record_without_a_key_is_verified_by_the_one_in_the_peer_id() -> None:
    assert read_peer_record(changed(library_record(ADDRS), public_key=b""), verify).peer == ALICE.peer_id


@pytest.mark.parametrize(
    ("addr", "dialled"),
    [
        (f"/ip4/10.0.0.1/tcp/9000/p2p/{ALICE.peer_id}", ("/ip4/10.0.0.1/tcp/9000",)),
        ("/ip4/10.0.0.1/udp/9000/quic-v1", ()),
        ("/ip4/10.0.0.1/tcp/9000/ws", ()),
        (f"/ip4/10.0.0.1/tcp/9000/p2p/{BOB.peer_id}/p2p-circuit", ("/ip4/10.0.0.1/tcp/9000",)),
        ("/dns/boot.example.org/tcp/1", ("/dns/boot.example.org/tcp/1",)),
        ("/unix/tmp%2Fsocket", ()),
    ],
)
def test_only_addresses_that_tcp_can_dial_are_taken(addr: str, dialled: tuple[str, ...]) -> None:
    assert read_peer_record(library_record([addr]), verify).addrs == dialled


def test_an_address_of_a_protocol_that_we_do_not_know_is_no_fault() -> None:
    payload = PeerRecord(peer_id=ALICE.peer_id_bytes, seq=1)
    for raw in (b"\xff\xff\x03new", b"", Multiaddr(ADDRS[0]).to_bytes()):
        payload.addresses.add(multiaddr=raw)
    covered = payload.SerializeToString()
    sealed = changed(library_record([]), payload=covered)
    assert read_peer_record(sealed, lambda peer, key, data, signature: covered in data).addrs == (ADDRS[0],)


@pytest.mark.parametrize(
    ("envelope", "why"),
    [
        (b"\xff" * 50, "protobuf"),
        (b"", "record"),
        (bytes(MAX_RECORD_BYTES + 1), "oversize"),
        (changed(library_record(ADDRS), payload=b"\xff"), "protobuf"),
        (changed(library_record(ADDRS), payload_type=b"\x03\x02"), "record"),
        (changed(library_record(ADDRS), payload=b""), "record"),
        (library_record([ADDRS[0]] * (MAX_ADDRS + 1)), "record"),
        (changed(library_record(ADDRS), signature=b"s" * 64), "signature"),
        (changed(library_record(ADDRS), signature=b""), "signature"),
        (changed(library_record(ADDRS), public_key=b"no key"), "signature"),
        (library_record(ADDRS, signer=BOB), "signature"),
        (
            changed(library_record(ADDRS), payload=Envelope.FromString(library_record(ADDRS, seq=8)).payload),
            "signature",
        ),
        (
            changed(library_record(ADDRS), payload=Envelope.FromString(library_record(ADDRS, of=BOB)).payload),
            "signature",
        ),
    ],
    ids=[
        "garbage",
        "empty",
        "oversize",
        "garbage-inside",
        "another-type",
        "no-peer",
        "too-many-addresses",
        "bad-signature",
        "unsigned",
        "malformed-key",
        "another-signer",
        "newer-seq",
        "another-peer",
    ],
)
def test_a_record_that_is_none_or_forged_is_refused(envelope: bytes, why: str) -> None:
    assert reason(envelope) == why


@many
@given(envelope=st.binary(max_size=300))
def test_any_bytes_are_refused(envelope: bytes) -> None:
    assert reason(envelope) in ("protobuf", "record", "signature")


@many
@given(st.data())
def test_a_record_changed_anywhere_is_refused_or_the_same(data: st.DataObject) -> None:
    original = library_record(ADDRS)
    raw = bytearray(original)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        record = read_peer_record(bytes(raw), verify)
    except InvalidMessage:
        return
    assert record == read_peer_record(original, verify)
