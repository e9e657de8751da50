"""Who said it had a message that we asked for, and did not send it.

gossipsub-v1.1, "Spam Protection Measures": of each batch asked of one peer one id, drawn
at random, is tracked; if nobody sends it in time, the peer broke its promise (P7). The
other ids are remembered too, so that one message is not asked of everybody.
"""

from __future__ import annotations

from collections import deque

from p2pnode.core.message import MessageId
from p2pnode.core.peerid import PeerId


class _Ask:
    __slots__ = ("expires", "id", "open", "peer", "tracked")

    def __init__(self, mid: MessageId, peer: PeerId, expires: float, tracked: bool) -> None:
        self.id = mid
        self.peer = peer
        self.expires = expires
        self.tracked = tracked
        self.open = True


class Promises:
    """Questions that wait for their message.

    Args:
        seconds: how long a peer has to answer.
        patience: seconds after which somebody else may be asked meanwhile, or peers that never answer
            would keep us from asking those that do.
        bound: questions remembered; over it none is entered, so nobody is held to it.
    """

    __slots__ = ("_bound", "_by_id", "_order", "_patience", "_seconds")

    def __init__(self, seconds: float, patience: float, bound: int) -> None:
        self._seconds = seconds
        self._patience = patience
        self._bound = bound
        self._by_id: dict[MessageId, list[_Ask]] = {}
        self._order: deque[_Ask] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def asked(self, mid: MessageId, peer: PeerId, now: float) -> tuple[int, bool]:
        """How many peers were asked for it within our patience, and whether `peer` still owes it."""
        asks = self._by_id.get(mid, ())
        recent = now + self._seconds - self._patience
        return sum(ask.expires > recent for ask in asks), any(ask.peer == peer for ask in asks)

    def ask(self, mid: MessageId, peer: PeerId, tracked: bool, now: float) -> None:
        """Remember a question."""
        if len(self._order) >= self._bound:
            return
        ask = _Ask(mid, peer, now + self._seconds, tracked)
        self._order.append(ask)
        self._by_id.setdefault(mid, []).append(ask)

    def kept(self, mid: MessageId) -> None:
        """The message came, from whomever: no promise about it can be broken any more."""
        for ask in self._by_id.pop(mid, ()):
            ask.open = False

    def gone(self, peer: PeerId) -> None:
        """The peer left: it owes nothing, and others may be asked."""
        for ask in self._order:
            if ask.open and ask.peer == peer:
                self._close(ask)

    def broken(self, now: float) -> list[PeerId]:
        """Peers whose tracked promises ran out, once for each."""
        late = []
        while self._order and self._order[0].expires <= now:
            ask = self._order.popleft()
            if ask.open:
                self._close(ask)
                if ask.tracked:
                    late.append(ask.peer)
        return late

    def _close(self, ask: _Ask) -> None:
        ask.open = False
        asks = self._by_id[ask.id]
        asks.remove(ask)
        if not asks:
            del self._by_id[ask.id]
