"""Private networks: all bytes of a connection are XORed with XSalsa20 under a key that the members share.

Source: libp2p specs, pnet/Private-Networks-PSK-V1.md: each side first sends a nonce of 24 bytes, then everything it
sends is encrypted under key and nonce. Authenticity is left to Noise above. (py-libp2p's own protector sends 8 bytes
and uses Salsa20, which neither go nor js understand.)

Nothing in it says whose key was wrong: the bytes of another network are noise. But every peer begins with the same
line, so whoever cannot read it hangs up at once and can say why, where the library would take a length out of the
noise and wait for so many bytes.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable

from libp2p.abc import IRawConnection
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError, IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection

NONCE_BYTES = 24

GREETING = b"\x13/multistream/1.0.0\n"
"""What every peer sends first: the header of multistream-select (libp2p specs, connections/README.md)."""

READ_BYTES = 64 * 1024
"""Most that is read at once: the library asks the kernel for as many bytes as a peer announces, up to 2^64."""

Xor = Callable[[bytes], bytes]
"""Encrypts or decrypts the next bytes of one direction."""


def xsalsa20(key: bytes, nonce: bytes) -> Xor:
    """The stream cipher of one direction.

    Args:
        key: 32 bytes.
        nonce: 24 bytes. D. J. Bernstein, "Extending the Salsa20 nonce" (2011): HSalsa20 of the first 16 gives the
            key of a Salsa20 stream under the last 8.
    """
    from Crypto.Cipher import Salsa20  # only a private network needs it

    encrypt: Xor = Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:]).encrypt
    return encrypt


def hsalsa20(key: bytes, block: bytes) -> bytes:
    """32 bytes of 32 bytes of key and 16 of input (the same paper, section 2)."""
    k = struct.unpack("<8I", key)
    n = struct.unpack("<4I", block)
    c = struct.unpack("<4I", b"expand 32-byte k")
    x = [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]
    for _ in range(10):
        for a, b, d, e in _COLUMNS:
            _quarter(x, a, b, d, e)
        for a, b, d, e in _ROWS:
            _quarter(x, a, b, d, e)
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))
_MASK = 0xFFFFFFFF


def _quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
    for target, one, other, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
        total = (x[one] + x[other]) & _MASK
        x[target] ^= (total << turn | total >> (32 - turn)) & _MASK


class Stranger(IOException):
    """The other end does not begin as a member of our network does: what can be known of it, and what to check."""


class HungUp(Stranger):
    """It hung up before it said enough to know: a member may do that too, or whatever stands between."""


_OR_ELSE = "or is no libp2p peer"
NO_KEY_THERE = "it has no network key and this node has one: compare network.key of both"
OTHER_KEY = f"what it sends cannot be read: it has another network key (compare network.key of both), {_OR_ELSE}"
KEY_THERE = f"what it sends cannot be read: it has a network key and this node none (network.key), {_OR_ELSE}"
HUNG_UP = "it hung up before the first word"
HUNG_UP_ON_KEY = f"{HUNG_UP}; a peer with another network key may do so (compare network.key of both)"


class NetworkConnection(RawConnection):
    """A raw connection of a network, which begins as the connections of this network do.

    Args:
        inner: the connection below.
        key: of a private network; empty: a public one.
    """

    def __init__(self, inner: RawConnection, key: bytes) -> None:
        super().__init__(inner.stream, inner.is_initiator)
        self.inner = inner
        self._key = key
        self._reading: Xor | None = None
        self._writing: Xor | None = None
        self._early = b""
        self._has_ended = False

    async def write(self, data: bytes) -> None:
        """Encrypt and write; before the first bytes goes our nonce."""
        if self._writing is not None:
            await self.inner.write(self._writing(data))
        elif self._key:
            nonce = secrets.token_bytes(NONCE_BYTES)
            self._writing = xsalsa20(self._key, nonce)
            await self.inner.write(nonce + self._writing(data))
        else:
            self._writing = bytes
            await self.inner.write(data)

    async def read(self, n: int | None = None) -> bytes:
        """Read and decrypt.

        Args:
            n: so many bytes come, at most READ_BYTES, fewer only at the end and of the greeting; None: what comes next.
                At the end none come, once.

        Raises:
            Stranger: at the first call: the other end does not begin as a member does.
            IncompleteReadError: the end was told already. The library takes it for a pause, and asks a hundred times
                for each byte that it wants: 4 ms of CPU for whoever hangs up after Noise, as each probe does.
        """
        if self._reading is None:
            self._reading = await self._begun()
            self._early = GREETING
        if self._early:
            data, self._early = (self._early, b"") if n is None else (self._early[:n], self._early[n:])
            return data
        if self._has_ended:
            raise IncompleteReadError("the other end hung up")
        data = await (self.inner.read() if n is None else self._whole(min(n, READ_BYTES)))
        self._has_ended = not data and n != 0
        return self._reading(data)

    async def _whole(self, n: int) -> bytes:
        """So many bytes, fewer at the end: the library itself gives up what comes in more than a hundred pieces."""
        data = await self.inner.read(n)
        while len(data) < n and (more := await self.inner.read(n - len(data))):
            data += more
        return data

    async def _begun(self) -> Xor:
        """Read the nonce, and a greeting that this network's key makes readable."""
        try:
            if not self._key:
                if not await self._is_greeted():
                    raise Stranger(KEY_THERE)
                return bytes
            start = await self._all_of(len(GREETING))  # no more: one without a key says no more
            if start == GREETING:
                raise Stranger(NO_KEY_THERE)
            reading = xsalsa20(self._key, start + await self._all_of(NONCE_BYTES - len(start)))
            # Compared as a whole: hanging up byte by byte would let a stranger guess the stream of a nonce it chose.
            if reading(await self._all_of(len(GREETING))) != GREETING:
                raise Stranger(OTHER_KEY)
            return reading
        except (ConnectionClosedError, IncompleteReadError, RawConnError) as error:
            raise HungUp(HUNG_UP_ON_KEY if self._key else HUNG_UP) from error

    async def _all_of(self, n: int) -> bytes:
        data = await self._whole(n)
        if len(data) < n:
            raise IncompleteReadError("the end within the greeting")
        return data

    async def _is_greeted(self) -> bool:
        """False at the first wrong byte, since a stranger may never send as many as a greeting has."""
        came = b""
        while came != GREETING and GREETING.startswith(came):
            data = await self.inner.read(len(GREETING) - len(came))
            if not data:
                raise IncompleteReadError("the end within the greeting")
            came += data
        return came == GREETING

    def ciphers(self) -> tuple[Xor, Xor] | None:
        """Those of reading and of writing, for whoever takes the socket over after the handshake; None in public.

        Raises:
            IOException: nothing was read or written yet.
        """
        if self._reading is None or self._writing is None:
            raise IOException("a connection was taken over before its handshake")
        return (self._reading, self._writing) if self._key else None


def enter(connection: IRawConnection, psk: str) -> NetworkConnection:
    """What takes the place of the library's `new_protected_conn`.

    Args:
        psk: 64 hexadecimal digits; empty: the network is public.
    """
    assert isinstance(connection, RawConnection)
    return NetworkConnection(connection, bytes.fromhex(psk))
