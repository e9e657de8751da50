"""Which signed messages were seen at NATS: what is there already need not be published again."""

from __future__ import annotations

from collections import OrderedDict

MAX_SEEN = 100_000
"""The oldest goes first. At 100 a second that is more than 15 minutes: longer than a server's duplicate window."""


class Seen:
    """Fingerprints of signed bytes, as `ports.Entry.digest`.

    By their bytes and not by their ids: a stranger that writes another's id over its own text would otherwise keep the
    true message from being published.
    """

    def __init__(self, bound: int = MAX_SEEN) -> None:
        self._bound = bound
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def note(self, digest: bytes) -> None:
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > self._bound:
            self._digests.popitem(last=False)
