"""What the library gets from us instead of what it would use of the modules it was imported without.

Public keys that are not Ed25519, verified as those of messages are; the cipher of private networks as go and
js have it; no resolver, because `dialable` resolves before the library sees an address; no resource
manager, because how many connections there are is the node's decision.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, NoReturn

import libp2p
from libp2p.crypto import serialization
from libp2p.crypto.keys import KeyType, PublicKey
from libp2p.network import swarm
from libp2p.peer import envelope
from libp2p.peer.pb import crypto_pb2
from libp2p.transport.tcp import tcp
from libp2p.utils import dns_utils
from multiaddr.exceptions import ResolutionError

from p2pnode.errors import InvalidMessage
from p2pnode.host.psk import enter
from p2pnode.identity import peer_id_of, verifier_for

_OTHER_KEYS = (KeyType.RSA, KeyType.Secp256k1, KeyType.ECDSA)


class OtherPublicKey(PublicKey):
    """A peer's public key of a type that we never make ourselves.

    Args:
        kind: its type.
        data: as it came; what is wrong with it shows when something is to be verified by it.
    """

    def __init__(self, kind: KeyType, data: bytes) -> None:
        self._kind = kind
        self._data = data

    def to_bytes(self) -> bytes:
        return self._data

    def get_type(self) -> KeyType:
        return self._kind

    def verify(self, data: bytes, signature: bytes) -> bool:
        key = self.serialize()
        try:
            return verifier_for(peer_id_of(key), key)(data, signature)
        except InvalidMessage:
            return False


class NoResolver:
    """Refuses every name."""

    async def resolve(self, address: object, options: object = None) -> NoReturn:
        raise ResolutionError(f"{address} holds a name, which the library was not to see")


def replace() -> None:
    """Put ours into the library's modules, wherever they look for theirs."""
    for kind in _OTHER_KEYS:
        serialization.key_type_to_public_key_deserializer[kind.value] = partial(OtherPublicKey, kind)
    _set(envelope, "pub_key_from_protobuf", _envelope_key)
    _set(swarm, "new_protected_conn", enter)
    for module in (swarm, tcp, dns_utils):
        _set(module, "DNSResolver", NoResolver)
    _set(libp2p.rcmgr, "new_resource_manager", _no_resource_manager)


def _envelope_key(key: crypto_pb2.PublicKey) -> PublicKey:
    # The library has two modules of the same protobuf, and for this one a table of its own.
    return serialization.deserialize_public_key(key.SerializeToString())


def _no_resource_manager() -> None:
    return None


def _set(module: ModuleType, name: str, value: Any) -> None:
    """Replace what is there.

    Raises:
        AttributeError: nothing is: the library has changed, and ours would never be used.
    """
    getattr(module, name)
    setattr(module, name, value)
