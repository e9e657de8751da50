"""The header that every frame begins with, and the words in it (libp2p specs, yamux/README.md, "Framing")."""

from __future__ import annotations

import enum
import struct

from p2pnode.errors import InvalidMessage

HEADER = struct.Struct(">BBHII")
"""Version, type, flags, stream, length."""

HEADER_BYTES = HEADER.size
VERSION = 0
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

INITIAL_WINDOW_BYTES = 256 * 1024
"""Both directions of every stream begin with it (spec, "Flow Control")."""

MAX_UINT32 = 2**32 - 1
"""The largest stream number, window and ping number."""


class GoAwayCode(enum.IntEnum):
    """Why a session ends (spec, "Session termination")."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class YamuxError(InvalidMessage):
    """The peer broke the protocol; the connection is of no more use.

    Reasons: `version`, `type`, `stream-zero`, `parity`, `duplicate-stream`, `unknown-stream`,
    `window-overrun`, `window-overflow`, `after-fin`, `flood`, `unread-answers`.
    """
