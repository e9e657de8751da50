"""The messages of the last heartbeats, kept to be advertised (IHAVE) and asked for (IWANT).

gossipsub-v1.0, "Message Cache": windows of one heartbeat each, shifted at its end.
"""

from __future__ import annotations

from collections import deque

from p2pnode.core.message import MessageId, SignedMessage, Topic
from p2pnode.core.peerid import PeerId


class _Entry:
    __slots__ = ("message", "sent")

    def __init__(self, message: SignedMessage) -> None:
        self.message = message
        self.sent: dict[PeerId, int] | None = None


class MessageCache:
    """Messages by id, in windows.

    Args:
        windows: how many are kept.
        gossip_windows: how many of the newest are advertised.
        max_bytes: of message bytes; over it the oldest messages go first and `evicted` counts them.
    """

    __slots__ = ("_entries", "_gossip", "_max_bytes", "_windows", "bytes", "evicted")

    def __init__(self, windows: int, gossip_windows: int, max_bytes: int) -> None:
        self._gossip = gossip_windows
        self._max_bytes = max_bytes
        self._entries: dict[MessageId, _Entry] = {}
        self._windows: deque[list[MessageId]] = deque(([] for _ in range(windows)), maxlen=windows)
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, mid: MessageId) -> bool:
        return mid in self._entries

    def put(self, mid: MessageId, message: SignedMessage) -> None:
        """Keep a message; one that is in stays where it is."""
        if mid in self._entries:
            return
        self._entries[mid] = _Entry(message)
        self._windows[0].append(mid)
        self.bytes += len(message.raw)
        if self.bytes > self._max_bytes:
            self._make_room()

    def get(self, mid: MessageId) -> SignedMessage | None:
        """The message, if it is still here."""
        entry = self._entries.get(mid)
        return entry.message if entry else None

    def ask(self, mid: MessageId, peer: PeerId) -> tuple[SignedMessage, int] | None:
        """The message and how often `peer` asked for it, this time included."""
        entry = self._entries.get(mid)
        if entry is None:
            return None
        if entry.sent is None:
            entry.sent = {}
        count = entry.sent[peer] = entry.sent.get(peer, 0) + 1
        return entry.message, count

    def gossip_ids(self, topic: Topic) -> list[MessageId]:
        """Ids of `topic` in the newest windows, newest first."""
        if not self._entries:
            return []
        found = []
        for window, _ in zip(self._windows, range(self._gossip), strict=False):
            for mid in window:
                entry = self._entries.get(mid)
                if entry is not None and entry.message.topic == topic:
                    found.append(mid)
        return found

    def shift(self) -> None:
        """Begin a new window and drop the oldest."""
        for mid in self._windows[-1]:
            self._drop(mid)
        self._windows.appendleft([])

    def _drop(self, mid: MessageId) -> bool:
        entry = self._entries.pop(mid, None)
        if entry is None:
            return False
        self.bytes -= len(entry.message.raw)
        return True

    def _make_room(self) -> None:
        for window in reversed(self._windows):
            for place, mid in enumerate(window):
                self.evicted += self._drop(mid)
                if self.bytes <= self._max_bytes:
                    del window[: place + 1]
                    return
            window.clear()
