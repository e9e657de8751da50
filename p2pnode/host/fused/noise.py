"""The transport phase of Noise: two bytes of length, then at most 65,535 bytes of ciphertext.

libp2p specs, noise/README.md ("Wire Format") and the Noise Protocol Framework, section 5.1: the
nonce of ChaCha20-Poly1305 is four zero bytes and a counter of 64 bits, little-endian. Each key
seals or opens one direction.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2pnode.errors import InvalidMessage

_TAG_BYTES = 16
_LENGTH = struct.Struct(">H")
_NONCE = struct.Struct("<4xQ")
MAX_PLAIN_BYTES = 65_535 - _TAG_BYTES


class NoiseError(InvalidMessage):
    """The peer's ciphertext is none of this connection. Reasons: `noise-length`, `noise-tag`."""


class Sealer:
    """Encrypts one direction.

    Args:
        cipher: holds the direction's key.
        nonce: messages sealed with it before.
    """

    __slots__ = ("_encrypt", "_nonce")

    def __init__(self, cipher: ChaCha20Poly1305, nonce: int) -> None:
        self._encrypt = cipher.encrypt
        self._nonce = nonce

    def seal(self, plain: bytes) -> bytes:
        """`plain` in as few Noise messages as hold it, each with its length before it."""
        if len(plain) <= MAX_PLAIN_BYTES:
            sealed = self._encrypt(_NONCE.pack(self._nonce), plain, None)
            self._nonce += 1
            return _LENGTH.pack(len(sealed)) + sealed
        view = memoryview(plain)
        parts: list[bytes] = []
        for start in range(0, len(plain), MAX_PLAIN_BYTES):
            sealed = self._encrypt(_NONCE.pack(self._nonce), view[start : start + MAX_PLAIN_BYTES], None)
            self._nonce += 1
            parts += (_LENGTH.pack(len(sealed)), sealed)
        return b"".join(parts)


class Opener:
    """Decrypts the other direction, however the bytes were cut; holds less than one message.

    Args:
        cipher: holds the direction's key.
        nonce: messages opened with it before.
    """

    __slots__ = ("_decrypt", "_nonce", "_rest")

    def __init__(self, cipher: ChaCha20Poly1305, nonce: int) -> None:
        self._decrypt = cipher.decrypt
        self._nonce = nonce
        self._rest = b""

    @property
    def cut(self) -> bool:
        """Are we within a message?"""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """The plaintext of all messages that `data` completes.

        Raises:
            NoiseError: a message is too short for its tag, or the tag is wrong.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        parts: list[bytes] = []
        position, end = 0, len(data)
        while end - position >= 2:
            (length,) = _LENGTH.unpack_from(data, position)
            if length < _TAG_BYTES:
                raise NoiseError("noise-length", f"a Noise message of {length} bytes is shorter than its tag")
            start = position + 2
            if end - start < length:
                break
            position = start + length
            try:
                parts.append(self._decrypt(_NONCE.pack(self._nonce), data[start:position], None))
            except InvalidTag:
                raise NoiseError("noise-tag", "a Noise message with a wrong tag: forged, damaged or replayed") from None
            self._nonce += 1
        if position < end:
            self._rest = data[position:]
        return parts[0] if len(parts) == 1 else b"".join(parts)
