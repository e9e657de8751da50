"""The node's Ed25519 key: its file, its signatures, and the peer id that follows from it.

Key and peer id formats: libp2p specs, peer-ids/peer-ids.md. Ed25519 is done by
libsodium; the other key types that go and js peers may use are verified by
`cryptography`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from p2pnode.core.peerid import PeerId, peer_id_text
from p2pnode.errors import EnvironmentFault, InvalidMessage, InvalidRequest

KEY_FILE_NAME = "identity.key"

_RSA, _ED25519, _SECP256K1, _ECDSA = range(4)
_ED25519_PUBLIC_HEADER = b"\x08\x01\x12\x20"
_ED25519_PRIVATE_HEADER = b"\x08\x01\x12\x40"

Verifier = Callable[[bytes, bytes], bool]
"""`(signed bytes, signature) -> good?`"""


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and what follows from it.

    Args:
        seed: the 32-byte Ed25519 seed. Never logged: `repr` hides it.
    """

    seed: bytes = field(repr=False)
    peer_id_bytes: bytes = field(init=False)
    peer_id: PeerId = field(init=False)
    _signer: SigningKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        signer = SigningKey(self.seed)
        key = _ED25519_PUBLIC_HEADER + bytes(signer.verify_key)
        object.__setattr__(self, "_signer", signer)
        object.__setattr__(self, "peer_id_bytes", peer_id_of(key))
        object.__setattr__(self, "peer_id", peer_id_text(self.peer_id_bytes))

    @classmethod
    def generate(cls) -> Identity:
        return cls(os.urandom(32))

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data`."""
        return self._signer.sign(data).signature

    def encode_private_key(self) -> bytes:
        """The libp2p private key protobuf: type, then seed and public key."""
        return _ED25519_PRIVATE_HEADER + self.seed + bytes(self._signer.verify_key)


def peer_id_of(public_key: bytes) -> bytes:
    """The peer id of a libp2p public key protobuf: identity multihash up to 42 bytes, else sha2-256."""
    if len(public_key) <= 42:
        return bytes((0, len(public_key))) + public_key
    return b"\x12\x20" + hashlib.sha256(public_key).digest()


@lru_cache(maxsize=4096)
def verifier_for(peer_id: bytes, key: bytes) -> Verifier:
    """How to verify what `peer_id` signed.

    Args:
        peer_id: in bytes.
        key: the libp2p public key protobuf that came along; empty when the peer id holds it.

    Raises:
        InvalidMessage: reason `key`: malformed, missing, or not the key of this peer id.
    """
    if not key:
        if peer_id[:1] != b"\x00":
            raise InvalidMessage("key", "the peer id does not hold its key and none came along")
        key = peer_id[2:]
    elif peer_id_of(key) != peer_id:
        raise InvalidMessage("key", "the key is not that of `from`")
    kind, data = _decode_public_key(key)
    if kind == _ED25519:
        if len(data) != 32:
            raise InvalidMessage("key", f"an Ed25519 key has 32 bytes, this one {len(data)}")
        return _ed25519_verifier(VerifyKey(data))
    return _other_verifier(kind, data)


def _ed25519_verifier(key: VerifyKey) -> Verifier:
    def verify(data: bytes, signature: bytes) -> bool:
        if len(signature) != 64:
            return False
        try:
            key.verify(data, signature)
        except BadSignatureError:
            return False
        return True

    return verify


def _other_verifier(kind: int, data: bytes) -> Verifier:
    # Imported here: our own fleet never needs it, and it costs 60 ms and 5 MiB.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        public: object = (
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), data)
            if kind == _SECP256K1
            else load_der_public_key(data)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidMessage("key", f"unreadable public key: {error}") from error
    if kind == _RSA and isinstance(public, rsa.RSAPublicKey):
        # go-libp2p refuses the same, so whoever forwarded such a message would pay for it there.
        if not 2048 <= public.key_size <= 8192:
            raise InvalidMessage("key", f"an RSA key has 2048 to 8192 bits, this one {public.key_size}")
        rsa_key = public

        def check(data: bytes, signature: bytes) -> None:
            rsa_key.verify(signature, data, padding.PKCS1v15(), SHA256())

    elif kind in (_SECP256K1, _ECDSA) and isinstance(public, ec.EllipticCurvePublicKey):
        curve_key = public

        def check(data: bytes, signature: bytes) -> None:
            curve_key.verify(signature, data, ec.ECDSA(SHA256()))

    else:
        raise InvalidMessage("key", f"key type {kind} does not fit the key's bytes")

    def verify(data: bytes, signature: bytes) -> bool:
        try:
            check(data, signature)
        except InvalidSignature:
            return False
        return True

    return verify


def _decode_public_key(key: bytes) -> tuple[int, bytes]:
    """`(type, data)` of a PublicKey protobuf, which the specification fixes as type, then data."""
    if len(key) < 4 or key[0] != 0x08 or key[1] > _ECDSA or key[2] != 0x12:
        raise InvalidMessage("key", "no libp2p public key")
    length, position = key[3], 4
    if length & 0x80:
        if len(key) < 5 or key[4] & 0x80:
            raise InvalidMessage("key", "a public key over the size limit")
        length, position = (length & 0x7F) | key[4] << 7, 5
    if len(key) != position + length:
        raise InvalidMessage("key", "a public key cut short or with bytes behind it")
    return key[1], key[position:]


def create_key_file(path: Path) -> Identity:
    """Make a new key and write it to `path`, mode 0600, never replacing a file.

    Raises:
        InvalidRequest: the file exists.
        EnvironmentFault: it cannot be written.
    """
    identity = Identity.generate()
    text = base64.b64encode(identity.encode_private_key()) + b"\n"
    write_key_file(path, text, hint="choose another file, or move the old key away: the node's peer id goes with it")
    return identity


def write_key_file(path: Path, text: bytes, *, hint: str) -> None:
    """Write a secret to `path`, mode 0600, never replacing a file.

    Args:
        hint: what to do when there is one already.

    Raises:
        InvalidRequest: the file exists.
        EnvironmentFault: it cannot be written.
    """
    # Not named by the pid: in a container it is the same at every start, and a crash leaves the file.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(scratch, path)  # fails when the file exists; a rename would replace it
            except FileExistsError as error:
                raise InvalidRequest(f"{path} exists and a key is never overwritten", hint=hint) from error
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot write the key file {path}: {error.strerror}") from error


def load_key_file(path: Path) -> Identity:
    """Read a key file.

    Raises:
        FileNotFoundError: there is none.
        EnvironmentFault: unreadable, or open to others than its owner.
        InvalidRequest: it holds no Ed25519 private key.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EnvironmentFault(f"cannot read the key file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise EnvironmentFault(
            f"the key file {path} has mode {mode:04o}, so others than its owner can use this node's identity",
            hint=f"chmod 600 {path}",
        )
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 68 or not raw.startswith(_ED25519_PRIVATE_HEADER):
        raise InvalidRequest(
            f"the key file {path} holds no Ed25519 private key",
            hint="expected is the base64 text that `p2pnode keygen FILE` writes, as in kubo's Identity.PrivKey",
        )
    identity = Identity(raw[4:36])
    if identity.encode_private_key() != raw:
        raise InvalidRequest(
            f"the key file {path} is damaged: its public half does not belong to its private half",
            hint="restore it from a backup, or remove it to get a new identity",
        )
    return identity


def open_identity(data_dir: Path) -> Identity:
    """The identity of a data directory, made at the first start."""
    path = data_dir / KEY_FILE_NAME
    try:
        return load_key_file(path)
    except FileNotFoundError:
        return create_key_file(path)
