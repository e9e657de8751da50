"""Another bridge as this one hears it over NATS."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnode.core.peerid import PeerId
from p2pnode.node.bridge.rolls import Part


@dataclass(slots=True, eq=False)
class OtherBridge:
    """Another bridge that was heard.

    Args:
        heard: monotonic time of its last word.
        at_ns: the stamp of its last word; an older one is a repetition.
        is_linked: can it be reached over libp2p? None: not known yet.
        judging: that is being found out.
        addrs: where.
        living: who lives on its side, of its last whole roll and the news since.
        waiting: parts that came before it was known to be unreachable.
        coming: what was gathered of a roll whose parts are still coming; `parts` of them, `size` bytes.
    """

    peer: PeerId
    import_key: PeerId
    heard: float
    at_ns: int = 0
    is_linked: bool | None = None
    judging: bool = False
    judged: float = 0.0
    addrs: tuple[str, ...] = ()
    living: set[PeerId] = field(default_factory=set)
    waiting: list[Part] = field(default_factory=list)
    coming: set[PeerId] = field(default_factory=set)
    parts: int = 0
    size: int = 0

    def gather(self, part: Part, living: set[PeerId]) -> None:
        """These live on its side. A whole roll takes the place of the last once all its parts came, in order."""
        if part.total == 0:
            self.living |= living
            return
        if part.number == 1:
            self.coming, self.parts = set(), 0
        if part.number == self.parts + 1:
            self.coming |= living
            self.parts = part.number
            if part.number == part.total:
                self.living, self.coming = self.coming, set()

    def forget(self) -> None:
        """Who lives on its side is ours to know: it can be reached."""
        self.living, self.coming, self.parts = set(), set(), 0
