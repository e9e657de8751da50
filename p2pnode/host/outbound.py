"""What waits to be written to one peer: bounded, by class, oldest forwarded message dropped first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from p2pnode.core.gossipsub.events import Priority
from p2pnode.core.message import MessageId

QUEUE_BYTES = 16 * 1024 * 1024
QUEUE_FRAMES = 16_384
WRITE_BYTES = 256 * 1024
"""Frames joined into one write: a yamux window."""

_DROP_ORDER = (Priority.FORWARD, Priority.GOSSIP)
_NEVER_DROPPED = (Priority.CONTROL, Priority.OWN)


@dataclass(slots=True)
class Frame:
    """An encoded frame, and which message it carries, if it carries one."""

    data: bytes
    message_id: MessageId | None = None


class OutboundQueue:
    """Frames for one peer in four classes: control, own messages, forwarded, gossip.

    Bounds: 16 MiB and 16,384 frames. When full, the oldest forwarded message goes first, then the
    oldest answer to an IWANT; control and own messages are never dropped, so when nothing else is
    left to drop, a new frame of these is refused and the peer is of no use any more.
    """

    def __init__(self, max_bytes: int = QUEUE_BYTES, max_frames: int = QUEUE_FRAMES) -> None:
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._classes: tuple[deque[Frame], ...] = tuple(deque() for _ in Priority)
        self._sizes = [0 for _ in Priority]
        self.bytes = 0
        self.frames = 0
        self.dropped = 0

    def push(self, frame: Frame, priority: Priority) -> tuple[bool, tuple[MessageId, ...]]:
        """Queue a frame.

        Returns:
            Whether it was taken, and the ids of messages that were dropped for it (its own when it was not).
        """
        size = len(frame.data)
        lost: list[MessageId] = []
        if not self._fits(size):
            if not self._can_make_room(size):
                self.dropped += 1
                return False, () if frame.message_id is None else (frame.message_id,)
            while not self._fits(size):
                victim = self._drop()
                if victim.message_id is not None:
                    lost.append(victim.message_id)
        self._classes[priority].append(frame)
        self._sizes[priority] += size
        self.bytes += size
        self.frames += 1
        return True, tuple(lost)

    def _fits(self, size: int) -> bool:
        return self.bytes + size <= self._max_bytes and self.frames < self._max_frames

    def _can_make_room(self, size: int) -> bool:
        """Decided before anything is dropped: a frame that is refused costs no other its place."""
        fixed_bytes = sum(self._sizes[priority] for priority in _NEVER_DROPPED)
        fixed_frames = sum(len(self._classes[priority]) for priority in _NEVER_DROPPED)
        return fixed_bytes + size <= self._max_bytes and fixed_frames < self._max_frames

    def _drop(self) -> Frame:
        priority = next(priority for priority in _DROP_ORDER if self._classes[priority])
        victim = self._classes[priority].popleft()
        self._sizes[priority] -= len(victim.data)
        self.bytes -= len(victim.data)
        self.frames -= 1
        self.dropped += 1
        return victim

    def take(self, max_bytes: int = WRITE_BYTES) -> tuple[bytes, tuple[MessageId, ...]]:
        """The next frames, most urgent first, joined: at least one, and no more than `max_bytes` otherwise.

        Returns:
            The bytes, and the ids of the messages in them.
        """
        parts: list[bytes] = []
        ids: list[MessageId] = []
        size = 0
        for priority, waiting in enumerate(self._classes):
            while waiting and (not parts or size + len(waiting[0].data) <= max_bytes):
                frame = waiting.popleft()
                parts.append(frame.data)
                if frame.message_id is not None:
                    ids.append(frame.message_id)
                size += len(frame.data)
                self._sizes[priority] -= len(frame.data)
            if waiting:
                break
        self.bytes -= size
        self.frames -= len(parts)
        return (parts[0] if len(parts) == 1 else b"".join(parts)), tuple(ids)

    def message_ids(self) -> tuple[MessageId, ...]:
        """Of the messages that wait."""
        return tuple(frame.message_id for waiting in self._classes for frame in waiting if frame.message_id is not None)
