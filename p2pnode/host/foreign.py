"""What crosses the seam to the library: peer ids, and its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID

from p2pnode.core.peerid import PeerId, peer_id_bytes, peer_id_text
from p2pnode.host.psk import Stranger

# What the library raises for a peer or a network that is not as it should be.
LIBRARY_ERRORS = (BaseLibp2pError, IOException, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def to_library_id(peer: PeerId) -> ID:
    return ID(peer_id_bytes(peer))


def from_library_id(peer: ID) -> PeerId:
    return peer_id_text(peer.to_bytes())


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error, and what is behind it, the outermost first; of a group, as trio gives one for a dial, the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__


def stranger_in(error: BaseException) -> Stranger | None:
    """That the other end is of another network, if that is behind an error."""
    return next((each for each in causes_of(error) if isinstance(each, Stranger)), None)


def reason_of(error: BaseException) -> str:
    """One line: that it is another network, or what the operating system said, if such is behind it, else the
    library's words."""
    stranger = stranger_in(error)
    if stranger is not None:
        return str(stranger)
    for each in causes_of(error):
        if isinstance(each, OSError) and each.errno:
            return os.strerror(each.errno)  # trio puts more into the error's own text
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
