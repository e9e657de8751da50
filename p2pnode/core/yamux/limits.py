"""What a peer is granted: numbers, the bytes that a host's sessions share, and a bucket of empty frames."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.core.yamux.frames import INITIAL_WINDOW_BYTES, YamuxError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session grants its peer.

    Args:
        max_inbound_streams: streams opened by the peer at one time.
        max_unacknowledged: streams opened by us that the peer has not acknowledged (spec, "ACK backlog": 256).
        max_unread_bytes: received and unread on all open streams of the session.
        max_answer_bytes: control frames that wait to be sent, when the peer asks for one more.
        max_frame_bytes: payload of the data frames that we send, so that streams take turns.
        empty_frames: frames without use that may come at once.
        empty_frames_per_second: how fast that allowance comes back.
    """

    max_inbound_streams: int = 256
    max_unacknowledged: int = 256
    max_unread_bytes: int = 16 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024
    max_frame_bytes: int = 64 * 1024
    empty_frames: int = 2_000
    empty_frames_per_second: float = 200.0


class Budget:
    """Bytes that all sessions of a host together may hold unread: `limit_bytes`, and each session's share above it.

    Without the share, a few peers whose data nobody reads would take the bytes that all others need to pass through.

    Args:
        limit_bytes: first come, first served.
        share_bytes: what a session may hold whatever the others do.

    Attributes:
        left: bytes that are free; negative when shares are held above the limit.
    """

    def __init__(self, limit_bytes: int = 128 * 1024 * 1024, share_bytes: int = INITIAL_WINDOW_BYTES) -> None:
        self.left = limit_bytes
        self._share = share_bytes

    def take(self, size: int, held: int) -> bool:
        """Whether `size` bytes were granted to a session that holds `held` with them."""
        if size > self.left and held > self._share:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        self.left += size


class Allowance:
    """A bucket of frames that carry nothing.

    Args:
        limits: its size, and how fast it refills.
    """

    def __init__(self, limits: Limits) -> None:
        self._size = float(limits.empty_frames)
        self._per_second = limits.empty_frames_per_second
        self._left = self._size
        self._at: float | None = None

    def spend(self, now: float) -> None:
        """One such frame came.

        Raises:
            YamuxError: it was one too many.
        """
        refill = 0.0 if self._at is None else (now - self._at) * self._per_second
        self._at = now
        self._left = min(self._left + refill, self._size) - 1.0
        if self._left < 0:
            raise YamuxError("flood", f"more than {self._size:g} frames that carry nothing")
