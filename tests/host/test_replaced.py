"""Peers with keys of every type can connect, though the library is imported without what it verifies them with."""

from __future__ import annotations

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p import new_host
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network import swarm
from libp2p.peer import envelope
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr.exceptions import ResolutionError
from multiaddr.multiaddr import Multiaddr

from p2pnode.core.peerid import peer_id_text
from p2pnode.host.opening import open_host
from p2pnode.host.psk import enter
from p2pnode.host.replaced import NoResolver, OtherPublicKey
from p2pnode.identity import Identity, peer_id_of
from tests.stacks import Stack, on_both_stacks

KEYS: dict[KeyType, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
    KeyType.RSA: rsa.generate_private_key(65537, 2048),
    KeyType.Secp256k1: ec.generate_private_key(ec.SECP256K1()),
    KeyType.ECDSA: ec.generate_private_key(ec.SECP256R1()),
}
KINDS = list(KEYS)


class OtherPrivateKey(PrivateKey):
    def __init__(self, kind: KeyType) -> None:
        self._kind = kind

    def to_bytes(self) -> bytes:
        raise NotImplementedError

    def get_type(self) -> KeyType:
        return self._kind

    def sign(self, data: bytes) -> bytes:
        key = KEYS[self._kind]
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), SHA256())
        return key.sign(data, ec.ECDSA(SHA256()))

    def get_public_key(self) -> PublicKey:
        public = KEYS[self._kind].public_key()
        if self._kind is KeyType.Secp256k1:
            return OtherPublicKey(self._kind, public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))
        return OtherPublicKey(self._kind, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_came_along_verifies_what_it_signed_and_nothing_else(kind: KeyType) -> None:
    private = OtherPrivateKey(kind)
    wire = private.get_public_key().serialize()
    public = deserialize_public_key(wire)
    assert public.serialize() == wire
    assert public.verify(b"said", private.sign(b"said"))
    assert not public.verify(b"not said", private.sign(b"said"))
    assert not public.verify(b"said", b"no signature")
    assert ID.from_pubkey(public).to_bytes() == peer_id_of(wire)
    assert envelope.pub_key_from_protobuf(envelope.pub_key_to_protobuf(public)) == public


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_cannot_be_read_verifies_nothing(kind: KeyType) -> None:
    assert not OtherPublicKey(kind, b"no key").verify(b"said", b"signature")


@on_both_stacks
@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_of_any_key_type_dials_and_is_known_by_its_peer_id(kind: KeyType, stack: Stack) -> None:
    private = OtherPrivateKey(kind)
    keys = KeyPair(private, private.get_public_key())
    foreign = new_host(key_pair=keys, sec_opt={NOISE: NoiseTransport(keys, create_new_key_pair().private_key)})
    async with open_host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"], stack=stack) as ours, foreign.run([]):
        info = info_from_p2p_addr(Multiaddr(ours.addrs()[0]))
        await foreign.connect(info)
        with trio.fail_after(10):
            while not ours.links():
                await trio.lowlevel.checkpoint()
        assert list(ours.links()) == [peer_id_text(peer_id_of(private.get_public_key().serialize()))]
        await foreign.disconnect(info.peer_id)


def test_the_library_begins_connections_as_our_networks_do() -> None:
    assert vars(swarm)["new_protected_conn"] is enter


async def test_the_library_resolves_no_names() -> None:
    with pytest.raises(ResolutionError, match="/dns4/example"):
        await NoResolver().resolve(Multiaddr("/dns4/example/tcp/1"))
