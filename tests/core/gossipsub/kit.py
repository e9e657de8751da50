"""One router under test, with short words for what peers do to it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TypeVar

from p2pnode.core.gossipsub.events import (
    Effect,
    Forward,
    Input,
    PeerConnected,
    Protocol,
    RpcReceived,
    SendRpc,
    Subscribe,
    Tick,
    Validate,
    Validated,
)
from p2pnode.core.gossipsub.params import Params
from p2pnode.core.gossipsub.router import Router
from p2pnode.core.gossipsub.rpc import IHave, Prune, PxPeer, Rpc, Subscription
from p2pnode.core.message import Accept, MessageId, SignedMessage, Topic, Verdict
from p2pnode.core.peerid import PeerId

T = Topic("councils.forming")
OTHER = Topic("councils.status")
ME = b"me" * 19
STRANGER = b"stranger" * 4 + b"......"

E = TypeVar("E")


def raw_of(name: str) -> bytes:
    return name.encode().ljust(38, b"-")


def message(
    number: int = 1, *, origin: bytes = STRANGER, topic: Topic = T, data: bytes = b"hello", signature: bytes = b"good"
) -> SignedMessage:
    seqno = number.to_bytes(8, "big")
    return SignedMessage(origin, seqno, topic, data, signature, b"", origin + seqno + data)


def forged(number: int = 1, data: bytes = b"forged") -> SignedMessage:
    return message(number, data=data, signature=b"bad")


def verify(candidate: SignedMessage) -> bool:
    return candidate.signature == b"good"


class Kit:
    """A router and its clock; `effects` are those of the last input."""

    def __init__(
        self, params: Params | None = None, *, seed: int = 1, direct: tuple[str, ...] = (), **changes: object
    ) -> None:
        self.held: set[MessageId] = set()
        self.params = replace(params or Params(), **changes)  # type: ignore[arg-type]
        self.now = 100.0
        self.router = Router(
            PeerId("me"),
            ME,
            self.params,
            Random(seed),
            verify,
            held=self.held.__contains__,
            records=lambda peer: f"record of {peer}".encode(),
            direct=[PeerId(each) for each in direct],
            now=self.now,
        )
        self.effects: list[Effect] = []

    def do(self, input_: Input) -> list[Effect]:
        self.effects = self.router.handle(input_, self.now)
        return self.effects

    def join(self, *topics: Topic) -> Kit:
        for topic in topics or (T,):
            self.do(Subscribe(topic))
        return self

    def connect(
        self, *names: str, topics: tuple[Topic, ...] = (T,), outbound: bool = False, ip: str | None = None,
        protocol: Protocol = Protocol.V1_2,
    ) -> Kit:  # fmt: skip
        for name in names:
            before = self.do(PeerConnected(PeerId(name), raw_of(name), protocol, outbound, ip))
            self.effects = before + (self.rpc(name, subscribe=topics) if topics else [])
        return self

    def rpc(
        self,
        name: str,
        *publish: SignedMessage,
        subscribe: tuple[Topic, ...] = (),
        ihave: tuple[MessageId, ...] = (),
        iwant: tuple[MessageId, ...] = (),
        graft: tuple[Topic, ...] = (),
        prune: tuple[Prune, ...] = (),
        idontwant: tuple[MessageId, ...] = (),
    ) -> list[Effect]:
        rpc = Rpc(
            subscriptions=tuple(Subscription(topic, True) for topic in subscribe),
            publish=publish,
            ihave=(IHave(T, ihave),) if ihave else (),
            iwant=iwant,
            graft=graft,
            prune=prune,
            idontwant=idontwant,
        )
        return self.do(RpcReceived(PeerId(name), rpc))

    def graft(self, *names: str) -> Kit:
        for name in names:
            self.rpc(name, graft=(T,))
        return self

    def verdict(self, of: SignedMessage, verdict: Verdict | None = None) -> list[Effect]:
        return self.do(Validated(of.id, verdict or Accept()))

    def accepted(self, name: str, *messages: SignedMessage) -> list[Effect]:
        """Messages come from a peer and are accepted."""
        effects: list[Effect] = []
        for each in messages:
            self.rpc(name, each)
            assert self.some(Validate), "the message did not reach the node"
            effects += self.verdict(each)
        self.effects = effects
        return effects

    def beat(self, times: int = 1) -> list[Effect]:
        """Let heartbeats pass; the effects of all of them."""
        effects: list[Effect] = []
        for _ in range(times):
            self.now = max(self.now, self.router.next_deadline())
            effects += self.do(Tick())
        self.effects = effects
        return effects

    def wait(self, seconds: float) -> Kit:
        end = self.now + seconds
        while self.router.next_deadline() <= end:
            self.beat()
        self.now = end
        return self

    def some(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def sent_to(self, name: str) -> list[Rpc]:
        return [effect.rpc for effect in self.some(SendRpc) if name in effect.peers]

    def grafted(self) -> set[str]:
        return {peer for effect in self.some(SendRpc) if effect.rpc.graft for peer in effect.peers}

    def pruned(self) -> dict[str, Prune]:
        return {effect.peers[0]: effect.rpc.prune[0] for effect in self.some(SendRpc) if effect.rpc.prune}

    def told(self) -> dict[str, set[MessageId]]:
        """IHAVE by peer."""
        return {
            effect.peers[0]: {mid for each in effect.rpc.ihave for mid in each.ids}
            for effect in self.some(SendRpc)
            if effect.rpc.ihave
        }

    def forwarded_to(self) -> set[str]:
        return {peer for effect in self.some(Forward) for peer in effect.peers}

    def mesh(self) -> set[str]:
        return set(self.router.mesh(T))

    def score(self, name: str) -> float:
        return self.router.score(PeerId(name))

    def count(self, kind: str, word: str) -> int:
        return self.router.counters.get((kind, word), 0)


def names(count: int, prefix: str = "p") -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(count))


def px(*peers: str, backoff: int = 60) -> Prune:
    return Prune(T, tuple(PxPeer(PeerId(peer), peer.encode()) for peer in peers), backoff)
