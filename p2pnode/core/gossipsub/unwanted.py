"""Who said not to send it which message (gossipsub-v1.2, "IDONTWANT Message")."""

from __future__ import annotations

from collections import deque

from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId


class Unwanted:
    """Notices by message id, so that forwarding asks once per message and not once per peer.

    Args:
        heartbeats: how long a notice counts.
        bound: notices remembered; over it further ones are not heeded, which costs a duplicate each.
    """

    __slots__ = ("_bound", "_by_id", "_count", "_windows", "get")

    def __init__(self, heartbeats: int, bound: int) -> None:
        self._bound = bound
        self._count = 0
        self._by_id: dict[MessageId, dict[PeerId, None]] = {}
        self._windows: deque[list[tuple[MessageId, PeerId]]] = deque(([] for _ in range(heartbeats)), maxlen=heartbeats)
        self.get = self._by_id.get

    def __len__(self) -> int:
        return self._count

    def add(self, mid: MessageId, peer: PeerId) -> bool:
        """Heed a notice; False when there is no room."""
        if self._count >= self._bound:
            return False
        peers = self._by_id.setdefault(mid, {})
        if peer not in peers:
            peers[peer] = None
            self._windows[0].append((mid, peer))
            self._count += 1
        return True

    def shift(self) -> None:
        """A heartbeat has passed."""
        for mid, peer in self._windows[-1]:
            peers = self._by_id[mid]
            del peers[peer]
            if not peers:
                del self._by_id[mid]
        self._count -= len(self._windows[-1])
        self._windows.appendleft([])
